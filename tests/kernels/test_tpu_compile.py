"""The kernels through the real TPU compiler, for every chip, without a TPU.

It proves that they lower, fit VMEM and can be scheduled: not that their numbers
are right (the interpreted tests do), nor how long they take.
"""

import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from tests.marks import quick

ROOT = pathlib.Path(__file__).parents[2]
# (K, V, options) of the recurrences, each forward and backward.
EVERYWHERE = [
    (64, 64, {}), (128, 128, {}), (256, 256, {}),
    (128, 128, {'dtype': 'float32'}),
]
MORE = {
    'v5e': [(128, 128, {'mesh_shape': [2, 2]}), (64, 128, {'read': 'post'})],
    'v6e': [
        (128, 256, {'save_states': 'recompute'}),
        (128, 64, {'packed': True, 'read': 'chunk'}),
        (256, 64, {'tile': 16, 'dtype': 'float32'}),
        # Linear attention: one column more than keys have.
        (64, 65, {'erase': False, 'read': 'post', 'packed': True}),
    ],
    'v5p': [(64, 64, {'dtype': 'float32', 'tile': 48})],
    'v4': [(64, 128, {'packed': True, 'tile': 64})],
    'TPU7x': [(128, 128, {'packed': True})],
}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='needs the TPU compiler: pip install libtpu (Linux on x86-64); this'
    f' is {platform.system()} on {platform.machine()}',
)


def _compile(programs):
  """What tpu_programs.py says of (program, arguments, options)."""
  environment = dict(
      os.environ, JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1',
      TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
      # Several tests at a time, none of them with a TPU to fight for.
      ALLOW_MULTIPLE_LIBTPU_LOAD='1', PYTHONPATH=str(ROOT),
      # It reads them too, and dies of one that only the CPU's compiler knows.
      XLA_FLAGS='',
  )
  done = subprocess.run(
      [sys.executable, str(ROOT / 'tests/kernels/tpu_programs.py')],
      input='\n'.join(json.dumps(p) for p in programs), text=True,
      capture_output=True, env=environment, check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  results = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(results) == len(programs)
  for program, result in zip(programs, results):
    assert result['error'] is None, (program, result['error'])
  return results


# The smallest and the oldest; a compiler for each.
@pytest.mark.parametrize('chip', quick(sorted(MORE), ['v5e', 'v4']))
def test_kernels_compile(chip):
  """If this fails, the TPU compiler refuses a kernel, or devices talk."""
  programs = [
      ('recurrence', (chip, *widths), options)
      for *widths, options in EVERYWHERE + MORE[chip]
  ]
  for program, result in zip(programs, _compile(programs)):
    # One kernel forward, one backward, and no word between devices.
    assert result['kernels'] == 2, program
    assert result['collectives'] == [], program


def test_a_sequence_over_devices_compiles():
  """If this fails, a TPU cannot split a sequence, or devices do not talk."""
  split = {'mesh_shape': (1, 1, 4), 'packed': True, 'tile': 64}
  (result,) = _compile([('recurrence', ('v5e', 64, 64), split)])
  assert result['kernels'] == 2
  assert result['collectives']


@pytest.mark.parametrize(
    'chip,memory',
    quick([('v5e', 'matrix'), ('v6e', 'mlp')], [('v5e', 'matrix')]),
)
def test_the_train_step_runs_the_kernel(chip, memory):
  """If this fails, Hope trains on a TPU without the kernel."""
  (result,) = _compile([('train_step', (chip,), {'memory': memory})])
  # Its block is computed anew in the backward pass: forward twice.
  assert result['kernels'] >= 2


@pytest.mark.parametrize(
    'rule', quick(['linear_attention', 'gated_deltanet'], ['gated_deltanet'])
)
def test_linear_memories_train_with_the_kernel(rule):
  """If this fails, the relatives of DGD are left to XLA on a TPU."""
  (result,) = _compile([('train_step', ('v6e',), {'architecture': rule})])
  assert result['kernels'] >= 2
