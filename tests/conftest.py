"""Settings shared by all tests: JAX on the CPU, single-threaded LAPACK."""

import os

# Before the first import of jax, which reads them once. A machine with an
# accelerator tests the same arithmetic as one without.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# OpenBLAS' threads (the oracles' NumPy, LAPACK under XLA) fight XLA's over the
# cores: a triangular solve then sometimes takes forty times as long.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import jax
import pytest


@pytest.fixture
def x64():
  """Runs a test with 64-bit types, and leaves the next one as it was."""
  with jax.enable_x64(True):
    yield
