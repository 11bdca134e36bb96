"""Attention through the real TPU compiler, without a TPU."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow  # The TPU compiler, three times, in a process of its own.
@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='needs the TPU compiler: pip install libtpu (Linux on x86-64)',
)
def test_splash_attention_compiles_and_is_chosen():
  """If this fails, a TPU refuses the kernel, or takes XLA's form unasked.

  One kernel forward and two backward; one device and four; packed rows.
  """
  environment = dict(
      os.environ, JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1',
      TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
      ALLOW_MULTIPLE_LIBTPU_LOAD='1', PYTHONPATH=str(ROOT),
      XLA_FLAGS='',  # those of the CPU's compiler stop the one of the TPU
  )
  done = subprocess.run(
      [sys.executable, str(ROOT / 'tests/models/tpu_attention.py')],
      text=True, capture_output=True, env=environment, check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.split() == ['3', '3', '3']
