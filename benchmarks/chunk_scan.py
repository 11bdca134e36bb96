"""The chunk form against the sequential scan, forward and backward, on a CPU.

    python benchmarks/chunk_scan.py

One process, one run: the ratio is what counts, the milliseconds are those of a
machine. B = 2, H = 4, T = 2048, float32.
"""

import argparse
import functools
import json
import os
import pathlib
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.kernels.dgd.api import dgd_recurrence

RESULTS = pathlib.Path(__file__).parent / 'results' / 'chunk_scan.json'
B, T, H = 2, 2048, 4


def arguments(width):
  rng = np.random.default_rng(0)
  q, k, u = rng.normal(size=(3, B, T, H, width)).astype(np.float32)
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  eta = rng.uniform(0, 1, (B, T, H)).astype(np.float32)
  log_alpha = np.log(rng.uniform(0.9, 1, (B, T, H))).astype(np.float32)
  state = np.zeros((B, H, width, width), np.float32)
  return [jnp.asarray(x) for x in (q, k, u, eta, log_alpha, state)]


def programs(**options):
  """Forward alone, and forward with all gradients; both compiled."""
  f = functools.partial(dgd_recurrence, **options)

  def both(*args):
    out, pull = jax.vjp(f, *args)
    return pull(jax.tree.map(jnp.ones_like, out))

  return jax.jit(f), jax.jit(both)


def best(f, args, repeats):
  """The fastest of a few runs, wall and CPU seconds."""
  jax.block_until_ready(f(*args))
  runs = []
  for _ in range(repeats):
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(f(*args))
    runs.append((time.perf_counter() - wall, time.process_time() - cpu))
  return min(r[0] for r in runs), min(r[1] for r in runs)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--widths', type=int, nargs='+', default=[64, 128])
  parser.add_argument('--tiles', type=int, nargs='+', default=[16, 32, 64])
  parser.add_argument('--repeats', type=int, default=5)
  flags = parser.parse_args()
  rows = []
  for width in flags.widths:
    args = arguments(width)
    forms = {'scan': dict(implementation='reference', tile=1)}
    for tile in flags.tiles:
      forms[f'chunk {tile}'] = dict(implementation='xla', tile=tile)
    for name, options in forms.items():
      row = {'d': width, 'form': name}
      for pass_, f in zip(('forward', 'both'), programs(**options)):
        wall, cpu = best(f, args, flags.repeats)
        row[f'{pass_}_ms'] = round(1e3 * wall, 1)
        row[f'{pass_}_cpu_ms'] = round(1e3 * cpu, 1)
      rows.append(row)
    scan = next(r for r in rows if r['d'] == width)
    for row in rows:
      if row['d'] == width:
        row['forward_ratio'] = round(scan['forward_ms'] / row['forward_ms'], 2)
        row['both_ratio'] = round(scan['both_ms'] / row['both_ms'], 2)
        print(row, flush=True)
  result = {
      'command': 'benchmarks/chunk_scan.py', 'jax': jax.__version__,
      'cores': os.cpu_count(), 'shape': {'B': B, 'T': T, 'H': H}, 'rows': rows,
  }
  RESULTS.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
