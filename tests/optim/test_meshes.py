"""Every optimizer on meshes as users have them: explicit, automatic, eager."""

import contextlib

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tests import eight_devices
from tests.optim.test_wrappers import OURS

SPECS = {
    'query': {'kernel': P('fsdp', 'tensor', None)},
    'w': P(None, 'fsdp', 'tensor'),
}
SHAPES = {'query': {'kernel': (8, 2, 4)}, 'w': (2, 8, 6)}
HOW = {
    'automatic, eager': (AxisType.Auto, lambda f: f),
    'explicit, eager': (AxisType.Explicit, lambda f: f),
    'explicit, jit': (AxisType.Explicit, jax.jit),
}


def test_on_eight_devices():
  """Runs the test below in a process that has them."""
  eight_devices.run(__file__, 'same_numbers')


# Compiled, those that test_contract.py has not; op by op one of each kind.
CASES = [
    (name, 'explicit, jit')
    for name in ('m3', 'delta_momentum_gram', 'at_frequency', 'nested')
] + [
    (name, how)
    for name in ('m3', 'nested')
    for how in ('automatic, eager', 'explicit, eager')
]


@pytest.mark.parametrize(('name', 'how'), CASES)
def test_the_same_numbers_sharded_as_the_parameters(name, how):
  """If it fails, an optimizer asks for a mesh, or gathers what was split.

  An automatic one is not set, as arrays carry theirs; explicit ones have to be,
  for `jax.grad` too. A level of period two holds, and moves.
  """
  if jax.device_count() < 8:
    pytest.skip(eight_devices.MISSING)
  kind, run = HOW[how]
  devices = mesh_utils.create_device_mesh((4, 2), jax.devices()[:8])
  mesh = jax.sharding.Mesh(devices, ('fsdp', 'tensor'), axis_types=(kind,) * 2)
  rng = np.random.default_rng(0)
  whole = jax.tree.map(
      lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), SHAPES,
      is_leaf=lambda s: isinstance(s, tuple),
  )
  split = jax.tree.map(
      lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), whole, SPECS
  )
  tx = OURS[name]()

  def steps(params, run):
    state = run(tx.init)(params)
    for _ in range(2 if name in ('at_frequency', 'nested') else 1):
      updates, state = run(tx.update)(params, state, params)
    return updates, state

  expected, _ = steps(whole, jax.jit)
  with contextlib.ExitStack() as stack:
    if kind == AxisType.Explicit:
      stack.enter_context(jax.set_mesh(mesh))
    updates, state = steps(split, run)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7),
      updates, expected,
  )
  if kind == AxisType.Explicit:
    like = {p.shape: p.sharding for p in jax.tree.leaves(split)}
    for leaf in jax.tree.leaves((updates, state)):
      wanted = like.get(leaf.shape, leaf.sharding)
      assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
