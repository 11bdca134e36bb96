"""An implementation from outside the package, chosen by a ModelConfig."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.kernels.dgd import implementations
from hope_jax.models.factory import language_model
from hope_jax.types import UnsupportedError
from tests.marks import quick

TOKENS = jnp.arange(40).reshape(2, 20) % 7


@pytest.fixture
def table(monkeypatch):
  """The table, as it is again after the test."""
  table = dict(implementations.IMPLEMENTATIONS)
  monkeypatch.setattr(implementations, 'IMPLEMENTATIONS', table)
  return table


def _model(architecture, implementation, heads):
  return language_model(ModelConfig(
      architecture=architecture, dim=16, heads=heads, layers=2,
      titans=TitansConfig(
          memory='matrix', chunk=8, projection_chunk=8,
          implementation=implementation,
      ),
  ))


@functools.cache
def _variables(architecture, heads):
  model = _model(architecture, 'xla', heads)
  return jax.jit(model.init)(jax.random.key(0), TOKENS)


def _logits(architecture, implementation, heads=2):
  """Of a small model; parameters do not depend on the implementation."""
  model = _model(architecture, implementation, heads)
  return jax.jit(model.apply)(_variables(architecture, heads), TOKENS)[0]


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


def _in_turn(step, params, carry, xs, marks, *, layer, partition):
  """An `implementations.RunScan`: `step` on one tile after the other."""
  assert partition is None

  def cut(x):  # [B, N C, H, ...] -> [N, B, H, C, ...]
    x = x.reshape(x.shape[0], -1, layer.tile, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))

  def join(y):
    y = jnp.moveaxis(y, (0, 2), (1, 3))
    return y.reshape(y.shape[0], -1, *y.shape[3:])

  # carry: of `step`; x: a tile of xs and of marks.
  carry, ys = jax.lax.scan(
      lambda carry, x: step(params, carry, *x), carry,
      jax.tree.map(cut, (xs, marks)),
  )
  return carry, jax.tree.map(join, ys)


def _register_scan(table, seen):
  """Registers 'toy', which runs layers of 8 wide heads, and 'recurrence'."""

  def scan(*args, layer, partition):
    seen.append(layer.tile)
    return _in_turn(*args, layer=layer, partition=partition)

  def obstacle(layer):
    return None if layer.key_dim == 8 else 'takes keys of 8 only'

  xla = table['xla']
  implementations.register('toy', implementations.Implementation(
      xla.run, xla.tile, platforms=('cpu',),
      scan=implementations.Scan(scan, obstacle),
  ))
  # Asked first by 'auto', but not for a layer.
  implementations.register('recurrence', xla._replace(platforms=('cpu',)))


@pytest.mark.parametrize('name', quick(['toy', 'auto'], ['auto']))
def test_hope_runs_its_scan(table, name):
  """If it fails, a kernel for the layer means changes in the layer."""
  seen = []
  _register_scan(table, seen)
  logits = _logits('hope', name)
  assert set(seen) == {8}
  seen.clear()
  expected = _logits('hope', 'xla')
  assert not seen
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_hope_refuses_what_cannot_run_it(table):
  """If it fails, a choice is silently replaced, or fails deep inside."""
  seen = []
  _register_scan(table, seen)
  for name in ('reference', 'recurrence'):
    with pytest.raises(UnsupportedError, match=f'{name!r} runs no self-mod'):
      _logits('hope', name)
  with pytest.raises(UnsupportedError, match="'toy' takes keys of 8 only"):
    _logits('hope', 'toy', heads=4)
  with pytest.warns(UserWarning, match="stands in for 'toy', which takes keys"):
    _logits('hope', 'auto', heads=4)
  assert not seen


@pytest.mark.parametrize('architecture', ['hope', 'deltanet'])
def test_a_name_that_is_not_there(architecture):
  """If it fails, a name with a typo runs as another."""
  with pytest.raises(UnsupportedError, match="one of .*; got 'toy'"):
    _logits(architecture, 'toy')
