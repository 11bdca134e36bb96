"""What optax asks of each of its contributed optimizers, asked of ours."""

import functools
import inspect

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from hope_jax import optim
from tests import eight_devices

# Name -> learning rate that converges on the targets below.
RATES = {
    'deep_momentum': 1e-3,
    'delta_momentum': 1e-3,
    'preconditioned_momentum': 1e-3,
    'feature_momentum': 1e-3,
    'nonlinear_momentum': 1e-3,
    'multi_scale_momentum': 1e-3,
    'm3': 1e-2,
    'muon': 1e-2,
    'adamuon': 1e-2,
    'dgd': 1e-2,
}
every = pytest.mark.parametrize('name', RATES)


def make(name, **options):
  return getattr(optim, name)(**({'learning_rate': RATES[name]} | options))


def rosenbrock(x):
  return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def parabola(target):
  def loss(params):
    terms = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
    return sum(jax.tree.leaves(terms))

  return loss


VECTOR = jnp.array([1.0, -1.0, 2.0])
MATRIX = jnp.array([[3.0, -2.0], [1.0, 4.0]])
TARGETS = {
    'parabola': (parabola(VECTOR), VECTOR, 0 * VECTOR),
    'rosenbrock': (rosenbrock, jnp.ones(2), jnp.zeros(2)),
    'matrix': (parabola(MATRIX), MATRIX, 0 * MATRIX),
    'mixed': (
        parabola((VECTOR, MATRIX)), (VECTOR, MATRIX), (0 * VECTOR, 0 * MATRIX)
    ),
}


@every
@pytest.mark.parametrize('target', TARGETS)
def test_converges(name, target):
  loss, best, start = TARGETS[target]
  tx = make(name)

  def step(carry, _):
    """carry: parameters and optimizer state."""
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  state = optax.tree.map_params(tx, lambda leaf: leaf, tx.init(start))
  (params, _), _ = jax.lax.scan(step, (start, state), length=30_000)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-2, atol=3e-2),
      params, best,
  )


# All that `optim` has, the directions and the levels too.
TRANSFORMATIONS = {
    **{name: make(name) for name in RATES},
    **{
        name: getattr(optim, name)()
        for name in optim.__all__
        if name.startswith('scale_by_')
    },
    'at_frequency': optim.at_frequency(optax.sgd(0.1), 2),
    'nested': optim.nested({'all': (optax.sgd(0.1), 2)}, lambda _: 'all'),
}


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_update_has_optax_s_names(name):
  """If it fails, `tx.update(updates=g, state=s)` works with optax's alone."""
  tx = TRANSFORMATIONS[name]
  state = tx.init(MATRIX)
  step = jax.jit(tx.update)
  by_name, _ = step(updates=MATRIX, state=state, params=MATRIX)
  in_order, _ = step(MATRIX, state, MATRIX)
  np.testing.assert_array_equal(by_name, in_order)
  takes = inspect.signature(tx.update).parameters
  assert list(takes)[:3] == ['updates', 'state', 'params']
  assert takes['params'].default is None


@every
def test_takes_extra_arguments_and_compiles_once(name):
  tx = optax.with_extra_args_support(make(name))
  traces = []

  @jax.jit
  def step(params, state):
    traces.append(1)
    updates, state = tx.update(
        jax.grad(rosenbrock)(params), state, params, value=1.0, nothing=2
    )
    return optax.apply_updates(params, updates), state

  params = jnp.zeros(2)
  state = tx.init(params)
  for _ in range(3):
    params, state = step(params, state)
  assert len(traces) == 1


@every
def test_hyperparameters_can_be_injected(name):
  params = [-jnp.ones((2, 3)), jnp.ones((2, 5, 2))]
  grads = [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]
  plain = make(name)
  factory = getattr(optim, name)
  injected = optax.inject_hyperparams(factory)(learning_rate=RATES[name])
  expected, _ = jax.jit(plain.update)(grads, plain.init(params), params)
  got, _ = jax.jit(injected.update)(grads, injected.init(params), params)
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, rtol=1e-5)


@every
def test_a_schedule_is_a_learning_rate(name):
  number, schedule = make(name), make(
      name, learning_rate=optax.constant_schedule(RATES[name])
  )
  grads = (VECTOR, MATRIX)
  for tx in (number, schedule):
    state, step = tx.init(grads), jax.jit(tx.update)
    for _ in range(3):
      updates, state = step(grads, state, grads)
    if tx is number:
      expected = updates
  for a, b in zip(updates, expected):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@every
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_updates_have_the_parameters_dtype_and_states_keep_theirs(name, dtype):
  """bf16 parameters have float32 state, and no dtype drifts."""
  params = {'w': jnp.ones((4, 3), dtype), 'b': jnp.ones(3, dtype)}
  tx = make(name)
  state = tx.init(params)
  updates, after = jax.jit(tx.update)(params, state, params)
  jax.tree.map(lambda u, p: (u.dtype == p.dtype) or pytest.fail(), updates,
               params)
  shapes = functools.partial(jax.tree.map, lambda s: (s.shape, s.dtype))
  assert shapes(state) == shapes(after)
  if name in ('deep_momentum', 'delta_momentum', 'feature_momentum', 'm3'):
    narrow = [s for s in jax.tree.leaves(state) if s.dtype == dtype]
    assert dtype == 'float32' or not [s for s in narrow if s.ndim > 1]


@every
def test_works_in_chains_masks_and_multi_steps(name):
  params = {'w': jnp.ones((4, 3)), 'b': jnp.ones(3)}
  chained = optax.chain(optax.clip_by_global_norm(1.0), make(name))
  masked = optax.masked(make(name), {'w': True, 'b': False})
  several = optax.MultiSteps(make(name), every_k_schedule=4)
  for tx in (chained, masked, several):
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert np.isfinite(updates['w']).all()
  assert not np.asarray(updates['w']).any()  # three gradients still to come


def test_on_eight_devices():
  """Runs the test below in a process that has them."""
  eight_devices.run(__file__, 'eight_devices_give')


@every
@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
def test_eight_devices_give_the_same_and_state_is_sharded_like_params(
    name, kind
):
  if jax.device_count() < 8:
    pytest.skip(eight_devices.MISSING)
  devices = mesh_utils.create_device_mesh((4, 2), jax.devices()[:8])
  mesh = jax.sharding.Mesh(devices, ('fsdp', 'tensor'), axis_types=(kind,) * 2)
  specs = {'stack': P(None, 'fsdp', 'tensor'), 'w': P('fsdp', 'tensor'),
           'b': P('tensor')}
  rng = np.random.default_rng(0)
  shapes = {'stack': (2, 8, 4), 'w': (8, 16), 'b': (4,)}
  params = {
      k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()
  }
  tx = make(name)
  expected, _ = jax.jit(tx.update)(params, tx.init(params), params)
  with jax.set_mesh(mesh):
    sharded = {
        k: jax.device_put(v, NamedSharding(mesh, specs[k]))
        for k, v in params.items()
    }
    state = jax.jit(tx.init)(sharded)
    got, state = jax.jit(tx.update)(sharded, state, sharded)
    got, state = jax.device_get((got, None))[0], state
    for leaf in jax.tree.leaves(state):
      if kind == AxisType.Explicit and leaf.shape in ((2, 8, 4), (8, 16)):
        assert not leaf.sharding.is_fully_replicated, leaf.sharding
  for k in params:
    np.testing.assert_allclose(got[k], expected[k], rtol=2e-4, atol=1e-7)


@every
def test_checkpoints_round_trip(name, tmp_path):
  params = {'w': MATRIX, 'b': VECTOR}
  tx = make(name)
  _, state = tx.update(params, tx.init(params), params)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', state)
    checkpointer.wait_until_finished()
    back = checkpointer.restore(
        tmp_path / 'state', jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    )
  jax.tree.map(np.testing.assert_array_equal, back, state)
