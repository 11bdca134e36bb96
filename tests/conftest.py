"""Settings shared by all tests: JAX on the CPU, single-threaded LAPACK."""

import gc
import os
import pathlib
import signal
import subprocess

# Before the first import of jax, which reads them once. A machine with an
# accelerator tests the same arithmetic as one without.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# OpenBLAS' threads (the oracles' NumPy, LAPACK under XLA) fight XLA's over the
# cores: a triangular solve then sometimes takes forty times as long.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

# A test compiles much and computes little: without LLVM's optimisation it takes
# half the time, without MLIR's way to fuse operations two thirds of that, and
# the arithmetic is the same.
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0'
    ' --xla_llvm_disable_expensive_passes=true'
    ' --xla_cpu_use_fusion_emitters=false',
)

import jax
import pytest

# Under `nohup` a lost terminal is ignored, by all that a test starts as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A process of Linux may have 65,530 memory mappings, and beyond them XLA's
# compiler dies. Each compiled program has dozens.
MAPPINGS = 15_000


@pytest.fixture(scope='module', autouse=True)
def few_mappings():
  """Lets go of compiled programs before a process runs out of mappings."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > MAPPINGS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
  """Runs a test with 64-bit types, and leaves the next one as it was."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def small_disk(tmp_path):
  """A file system of one megabyte."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)]
  try:
    done = subprocess.run(command, capture_output=True, check=False)
  except FileNotFoundError:
    pytest.skip('no mount command')
  if done.returncode:
    pytest.skip('only the superuser may mount a small file system')
  yield disk
  subprocess.run(['umount', '-l', str(disk)], check=True)
