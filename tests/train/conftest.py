"""Compiled programs are kept for the tests of one folder, which share them."""

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest


@pytest.fixture(scope='package', autouse=True)
def compiled_programs(tmp_path_factory):
  """A run that is started again compiles the same step again."""
  settings = {
      'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
      'jax_persistent_cache_min_compile_time_secs': 0.0,
      'jax_persistent_cache_min_entry_size_bytes': 0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
