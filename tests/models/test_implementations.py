"""An implementation from outside the package, chosen by a ModelConfig."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.kernels.dgd import implementations
from hope_jax.models.factory import language_model

TOKENS = jnp.arange(40).reshape(2, 20) % 7


@pytest.fixture
def table(monkeypatch):
  """The table, as it is again after the test."""
  table = dict(implementations.IMPLEMENTATIONS)
  monkeypatch.setattr(implementations, 'IMPLEMENTATIONS', table)
  return table


def _logits(architecture, implementation):
  """Of a small model; parameters do not depend on the implementation."""
  model = language_model(ModelConfig(
      architecture=architecture, dim=16, heads=2, layers=2,
      titans=TitansConfig(
          memory='matrix', chunk=8, projection_chunk=8,
          implementation=implementation,
      ),
  ))
  params = model.init(jax.random.key(0), TOKENS)['params']
  return jax.jit(model.apply)({'params': params}, TOKENS)[0]


@pytest.mark.parametrize('name', ['toy', 'auto'])
def test_deltanet_runs_it(table, name):
  """If it fails, a kernel is in the table and no configuration can name it."""
  seen = []

  def run(*args, tile, **options):
    seen.append(tile)
    return table['xla'].run(*args, tile=tile, **options)

  implementations.register('toy', implementations.Implementation(
      run, lambda key_dim, length: 4, platforms=('cpu',)
  ))
  logits = _logits('deltanet', name)
  assert set(seen) == {4}
  np.testing.assert_allclose(logits, _logits('deltanet', 'xla'), atol=1e-5)
