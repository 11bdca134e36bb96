"""What the TPU compiler schedules for a kernel: bundles, units, spills, floors.

    python benchmarks/tpu_schedule.py                 ours, on five chips
    python benchmarks/tpu_schedule.py --peer PYTHON   deltanet-tpu beside it
    python benchmarks/tpu_schedule.py --tune          tiles and rows of a block

No TPU is needed: libtpu compiles for one and writes down its final VLIW
bundles, one a cycle if nothing stalls. PYTHON is that of an environment with
deltanet-tpu (it wants Python 3.12 or newer) and libtpu; ours runs in it too, so
that both go through the same compiler.
"""

import argparse
import functools
import glob
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from hope_jax.kernels.dgd.tpu import block_sizes

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
CAVEAT = """\
What such a count can prove: that a kernel compiles for the chip, how many
bundles a token takes if nothing stalls, which units they use, what spills, and
which of two kernels asks for less. What it cannot: time. DMA that is not
hidden, memory banks and the clock are not in it; for deltanet-tpu the one
published time (v6e) is 1.4 x its count. deltanet-tpu computes a decay for every
channel, which is more work than our one for every head; both run at their bf16
precision. XLA's programs are counted by XLA's own estimate of cycles, loops
times their trips."""
# Topology and device kind of a chip; bf16 FLOP/s, bytes/s, GHz (assumed), and
# TensorCores that share them.
CHIPS = {
    'v4': ('v4:2x2x1', 'TPU v4', 275e12, 1.23e12, 1.05, 2),
    'v5e': ('v5e:2x2', 'TPU v5 lite', 197e12, 0.82e12, 1.5, 1),
    'v5p': ('v5p:2x2x1', 'TPU v5', 459e12, 2.46e12, 1.75, 2),
    'v6e': ('v6e:2x2', 'TPU v6 lite', 920e12, 1.64e12, 1.75, 1),
    'TPU7x': ('tpu7x:2x2x1', 'TPU7x', 2310e12, 7.4e12, 2.2, 2),
}
UNITS = (
    'matmul', 'matpush', 'xlu', 'valu', 'vpop', 'eup', 'load', 'fill', 'store',
    'spill', 'salu',
)
HEADS, LENGTH = 16, 8192


def worker(spec):
  """Compiles one program and prints what the parent cannot see: one JSON."""
  import jax
  from jax.experimental import topologies
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec
  import numpy as np

  topology = topologies.get_topology_desc(
      CHIPS[spec['chip']][0], platform='tpu'
  )
  mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ('data',))
  sharding = NamedSharding(mesh, PartitionSpec())
  width, length, heads = spec['width'], spec['length'], spec['heads']
  dtype = jnp.dtype(spec['dtype'])

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  vectors = array(1, length, heads, width, dtype=dtype)
  state = array(1, heads, width, width)
  if spec['program'] == 'deltanet-tpu':
    from deltanet_tpu import chunk_gdn2

    channels = array(1, length, heads, width)
    args = (vectors, vectors, vectors, channels, channels, channels)
    # It asks the process, not the mesh, whether to emulate its kernels.
    jax.default_backend = lambda: 'tpu'
    f = chunk_gdn2
    cotangents = vectors
  else:
    from hope_jax.kernels.dgd.api import dgd_recurrence

    if spec.get('rows'):
      for kind, chip in block_sizes.CHIPS.items():
        block_sizes.CHIPS[kind] = chip._replace(rows=spec['rows'])
    gates = array(1, length, heads)
    args = (vectors, vectors, vectors, gates, gates, state)
    cotangents = (vectors, state)
    f = functools.partial(
        dgd_recurrence, implementation=spec['program'], tile=spec['tile'],
        precision='bf16' if dtype == jnp.bfloat16 else 'float32',
        save_states=spec.get('save_states', 'auto'),
    )

  def both(args, cotangents):
    out, pull = jax.vjp(f, *args)
    return out, pull(cotangents)

  run, inputs = (both, (args, cotangents)) if spec['backward'] else (
      lambda args: f(*args), (args,)
  )
  grids = []

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'pallas_call':
        grid = eqn.params['grid_mapping'].grid
        grids.append(int(np.prod([int(g) for g in grid])))
      for inner in jax.tree.leaves(
          list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
      ):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns') and eqn.primitive.name != 'pallas_call':
          walk(inner)

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    traced = jax.jit(run).trace(*inputs)
    walk(traced.jaxpr.jaxpr)
    compiled = traced.lower(lowering_platforms=('tpu',)).compile()
  text = compiled.as_text()
  print(json.dumps({
      'grids': grids,
      'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
      'xla_cycles': estimated_cycles(text),
      'jax': jax.__version__,
  }))


def estimated_cycles(text):
  """XLA's estimate of what runs outside kernels: loops times their trips."""
  bodies, name = {}, None
  for line in text.splitlines():
    header = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if header:
      name = 'ENTRY' if header[1] else header[2]
      bodies[name] = []
    elif name:
      bodies[name].append(line)

  def total(name):
    cycles = 0
    for line in bodies.get(name, ()):
      found = re.search(r'"estimated_cycles":"(\d+)"', line)
      cycles += int(found[1]) if found else 0
      loop = re.search(
          r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)', line
      )
      if loop:  # a scan counts up to a constant of its condition
        limits = re.findall(r' constant\((\d+)\)', '\n'.join(bodies[loop[1]]))
        cycles += max(map(int, limits)) * total(loop[2])
    return cycles

  return total('ENTRY')


def compile_program(python, spec, keep=None):
  """Runs a worker and reads what the compiler has written down."""
  with tempfile.TemporaryDirectory() as scratch:
    folder = keep or scratch
    environment = dict(
        os.environ, JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1',
        TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
        ALLOW_MULTIPLE_LIBTPU_LOAD='1', PYTHONPATH=str(ROOT),
        LIBTPU_INIT_ARGS=f'--xla_jf_dump_to={folder}'
        ' --xla_jf_dump_llo_text=true',
    )
    done = subprocess.run(
        [python, __file__, '--worker', json.dumps(spec)], text=True,
        capture_output=True, env=environment, check=False,
    )
    if done.returncode:
      raise RuntimeError(f'{spec}: {done.stderr[-2000:]}')
    result = json.loads(done.stdout.splitlines()[-1])
    kernels = read_kernels(folder)
  if len(kernels) != len(result['grids']):
    raise RuntimeError(f'{spec}: {len(kernels)} kernels, {result["grids"]}')
  for kernel, steps in zip(kernels, result['grids']):
    kernel['steps'] = steps
  result['kernels'] = kernels
  result['cycles'] = sum(k['bundles'] * k['steps'] for k in kernels)
  result['spec'] = spec
  return result


def read_kernels(folder):
  """Bundles and the share of each unit's slots in use, of each kernel.

  Raises:
    RuntimeError: a kernel has a loop besides that over its grid; how often it
      turns, bundles do not tell.
  """
  kernels = []
  for path in sorted(glob.glob(f'{folder}/*final_hlo-static-per-bundle*')):
    name = re.sub(r'-\d+-final_hlo.*', '', os.path.basename(path))
    order, _, name = name.partition('-')
    # The analysis names the instruction; the whole program (TLP) names all.
    analysis = glob.glob(f'{folder}/{order}-{name}-*schedule-analysis_final*')
    with open(analysis[0]) as file:
      if name == 'TLP' or 'custom_call_target="tpu_custom_call"' not in (
          file.read()
      ):
        continue
    (text,) = glob.glob(f'{folder}/{order}-{name}-*[0-9]-final_bundles.txt')
    with open(text) as file:
      loops = file.read().count('/* loop exit test */')
    if loops != 1:
      raise RuntimeError(f'{name}: {loops} loops; one, over the grid, counts')
    with open(path) as file:
      head, body = file.read().split('== UTILIZATION:')
    slots = [int(x) for x in head.strip().splitlines()[-1].split()]
    rows = [[int(x) for x in line.split()] for line in body.split('\n') if line]
    used = {
        unit: sum(row[i] for row in rows) / (len(rows) * slots[i])
        for i, unit in enumerate(UNITS)
    }
    kernels.append({
        'name': name, 'bundles': len(rows), 'order': int(order),
        'spills': sum(row[UNITS.index('spill')] for row in rows),
        'used': {unit: round(share, 3) for unit, share in used.items()},
    })
  return sorted(kernels, key=lambda k: k['order'])


def floors(chip, width, tile, itemsize, backward, saved=True):
  """(MXU, HBM) nanoseconds a token and head: kernels of one scalar decay.

  FLOPs: 6 d^2 + 8 C d forward, 14 d^2 + 22 C d backward. Bytes: q, k, u, o and
  the gates; their gradients, and do; one float32 state a tile, written by the
  forward and read by the backward pass.
  """
  _, _, flops_per_second, bytes_per_second, _, _ = CHIPS[chip]
  states = 4 * width * width / tile if saved else 0
  flops, moved = 6 * width**2 + 8 * tile * width, 4 * width * itemsize + 8
  if backward:
    flops, moved = 14 * width**2 + 22 * tile * width, 7 * width * itemsize + 16
  return 1e9 * flops / flops_per_second, 1e9 * (moved + states) / (
      bytes_per_second
  )


def rows_of(result):
  """One row for each kernel of one of our programs."""
  spec = result['spec']
  *_, clock, cores = CHIPS[spec['chip']]
  itemsize = 2 if spec['dtype'] == 'bfloat16' else 4
  rows = []
  for kernel, backward in zip(result['kernels'], (False, True)):
    per_token = kernel['bundles'] * kernel['steps'] / (
        spec['heads'] * spec['length']
    )
    mxu, hbm = floors(spec['chip'], spec['width'], spec['tile'], itemsize,
                      backward)
    nanoseconds = per_token / clock / cores
    rows.append({
        'chip': spec['chip'], 'width': spec['width'], 'tile': spec['tile'],
        'rows': spec.get('rows'), 'dtype': spec['dtype'],
        'pass': 'backward' if backward else 'forward',
        'bundles_per_token_head': round(per_token, 2),
        'mxu': kernel['used']['matmul'], 'spills': kernel['spills'],
        'ns': round(nanoseconds, 2), 'mxu_floor_ns': round(mxu, 2),
        'hbm_floor_ns': round(hbm, 2),
        'ratio': round(nanoseconds / max(mxu, hbm), 2),
    })
  return rows


def table(rows):
  columns = list(rows[0])
  widths = [max(len(str(r[c])) for r in [dict(zip(columns, columns)), *rows])
            for c in columns]
  for row in [dict(zip(columns, columns)), *rows]:
    print('  '.join(str(row[c]).rjust(w) for c, w in zip(columns, widths)))


def ours(chip, **changes):
  spec = dict(
      program='pallas_tpu', chip=chip, width=128, dtype='bfloat16',
      tile=block_sizes.chip(CHIPS[chip][1]).tile, heads=HEADS, length=LENGTH,
      backward=True, save_states='hbm',
  )
  return {**spec, **changes}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--worker')
  parser.add_argument('--peer', help='Python of an environment with the peer')
  parser.add_argument('--chips', nargs='+', default=list(CHIPS))
  parser.add_argument('--tune', action='store_true')
  parser.add_argument('--keep', help='folder for what the compiler writes')
  parser.add_argument('--output', help='JSON; default: in benchmarks/results')
  flags = parser.parse_args()
  if flags.worker:
    worker(json.loads(flags.worker))
    return
  python = flags.peer or sys.executable
  if subprocess.run([python, '-c', 'import libtpu'], check=False).returncode:
    parser.error(f'{python} has no libtpu: pip install libtpu')
  if flags.tune:
    specs = [
        ours(chip, tile=tile, rows=rows, heads=2 * HEADS, length=1024)
        for chip in flags.chips for tile in (64, 128) for rows in (2, 4, 8, 16)
    ]
  else:
    specs = [
        *(ours(chip) for chip in reversed(flags.chips)),
        ours('v6e', width=64), ours('v6e', width=256),
        ours('v6e', dtype='float32'), ours('v6e', tile=64),
    ]
  name = 'tpu_tuning' if flags.tune else 'tpu_schedule'
  output = pathlib.Path(flags.output or RESULTS / f'{name}.json')
  options = '--tune' if flags.tune else '--peer PYTHON'
  report = {
      'command': f'python benchmarks/tpu_schedule.py {options}',
      'heads': specs[0]['heads'], 'length': specs[0]['length'],
      'caveat': CAVEAT, 'rows': [],
      'comparisons': [],
  }

  def write():
    output.write_text(json.dumps(report, indent=1) + '\n')

  run = functools.cache(
      lambda spec: compile_program(python, json.loads(spec), flags.keep)
  )
  if not flags.tune:
    peers = ['xla', 'deltanet-tpu'] if flags.peer else ['xla']
    for backward in (True, False):
      for peer in peers:
        report['comparisons'].append(compare(run, peer, backward))
        print(report['comparisons'][-1], flush=True)
        write()
  for spec in specs:
    try:
      result = run(json.dumps(spec))
    except RuntimeError as error:  # the compiler's refusal is a result too
      print(error)
      continue
    report['rows'] += rows_of(result)
    report['jax'] = result['jax']
    print(report['rows'][-2], report['rows'][-1], sep='\n', flush=True)
    write()
  print()
  table(report['rows'])
  print('\n' + CAVEAT)


def compare(run, peer, backward):
  """Ours against another program, on v6e: kernels and what XLA adds to them."""
  def of(program):
    result = run(json.dumps(ours('v6e', program=program, backward=backward)))
    return result['cycles'] + result['xla_cycles'], result['temporary_bytes']

  (mine, my_bytes), (theirs, their_bytes) = of('pallas_tpu'), of(peer)
  return {
      'against': peer, 'pass': 'both' if backward else 'forward',
      'cycles': mine, 'their_cycles': theirs,
      'ratio': round(mine / theirs, 3), 'temporary_bytes': my_bytes,
      'their_temporary_bytes': their_bytes,
  }


if __name__ == '__main__':
  main()
