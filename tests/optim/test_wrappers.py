"""Every optimizer under what users wrap around it, beside optax's own two.

A cell is a way to use an optimizer. Ours must pass all of them; where
`optax.adamw` or `optax.contrib.muon` does not, its cell is marked, and so is
the table in docs/faults.md.
"""

import functools
import pickle
from typing import Any, NamedTuple

from flax import nnx
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import optim
from tests.marks import quick

RATE = 0.01
OURS = {
    name: functools.partial(getattr(optim, name), RATE)
    for name in (
        'deep_momentum', 'delta_momentum', 'dgd', 'feature_momentum',
        'multi_scale_momentum', 'nonlinear_momentum', 'preconditioned_momentum',
    )
} | {
    # One iteration: each more is the same again, and compiled.
    name: functools.partial(getattr(optim, name), RATE, ns_steps=1)
    for name in ('adamuon', 'm3', 'muon')
} | {
    'delta_momentum_gram': functools.partial(
        optim.delta_momentum, RATE, gram='matrix', normalize='unit'
    ),
    'at_frequency': lambda: optim.at_frequency(
        optax.sgd(RATE, momentum=0.9), 2
    ),
    'at_frequency_1': lambda: optim.at_frequency(
        optax.sgd(RATE, momentum=0.9), 1
    ),
    'nested': lambda: optim.nested(
        {'all': (optax.sgd(RATE, momentum=0.9), 2)},
        lambda params: jax.tree.map(lambda _: 'all', params),
    ),
}
PEERS = {
    'optax.adamw': functools.partial(optax.adamw, RATE),
    'optax.contrib.muon': functools.partial(optax.contrib.muon, RATE),
}
MATRICES_ONLY = ('delta_momentum_gram',)


class Layer(NamedTuple):
  """Parameters in a tuple of names, one of them absent."""

  w: Any
  nothing: Any = None


def params_of(name, dtype=jnp.float32):
  tree = {'a': Layer(jnp.ones((2, 4, 3), dtype))}
  if name not in MATRICES_ONLY:
    tree['b'] = jnp.ones(3, dtype)
  return tree


def steps(tx, params, grads=None, count=3):
  """Parameters and state after some steps of one compiled program."""
  step = jax.jit(tx.update)
  state = tx.init(params)
  for _ in range(count):
    updates, state = step(params if grads is None else grads, state, params)
    params = optax.apply_updates(params, updates)
  assert step._cache_size() == 1  # The state is of one dtype from the start.
  return params, state


def dtypes(tree):
  return jax.tree.map(lambda x: jnp.result_type(x), tree)


def finite(tree):
  return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def strict(name, make):
  with jax.numpy_dtype_promotion('strict'):
    assert finite(steps(make(), params_of(name))[0])


def low_precision(name, make, dtype):
  """Narrow parameters: state float32, updates theirs, gradients either."""
  params = params_of(name, dtype)
  for grads in (params, params_of(name)):
    tx = make()
    updates, state = jax.eval_shape(tx.update, grads, tx.init(params), params)
    assert dtypes(updates) == dtypes(params)
    assert dtypes(state) == dtypes(make().init(params_of(name)))
    assert finite(steps(make(), params, grads)[0])


def double(name, make):
  with jax.enable_x64(True):
    params = params_of(name, jnp.float64)
    after, state = steps(make(), params)
    assert dtypes(after) == dtypes(params)
    kinds = {x.dtype for x in jax.tree.leaves(state)}
    assert jnp.dtype('float32') not in kinds


def sums(name, make):
  """A constant gradient, 3,000 steps in bfloat16: the step of float32."""

  def last_step(dtype):
    params = jax.tree.map(jnp.zeros_like, params_of(name, dtype))
    tx = make()
    ones = jax.tree.map(jnp.ones_like, params)

    def step(state, _):
      updates, state = tx.update(ones, state, params)
      return state, updates

    _, trace = jax.lax.scan(step, tx.init(params), length=3000)
    return jax.tree.map(lambda u: np.float32(u[-1]), trace)

  trees = map(last_step, ('bfloat16', 'float32'))
  for a, b in zip(*map(jax.tree.leaves, trees)):
    np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-6)


def donated(name, make):
  tx, params = make(), params_of(name)
  state = tx.init(params)
  step = jax.jit(tx.update, donate_argnums=1)
  _, state = step(params, state, params)
  step(params, state, params)


def through_a_step(name, make):
  """Differentiating through a step where a gradient is zero."""
  params = params_of(name)

  def loss(params, scale):
    grads = jax.tree.map(lambda p: scale * 0 * p, params)
    updates, _ = make().update(grads, make().init(params), params)
    params = optax.apply_updates(params, updates)
    return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

  assert finite(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, 1.0))


def empty(name, make):
  params = params_of(name) | {'none': jnp.ones((0, 3)), 'of': jnp.ones((3, 0))}
  assert finite(steps(make(), params)[0])


def python_float(name, make):
  if name in MATRICES_ONLY:
    pytest.skip('takes matrices')
  params, tx = params_of(name) | {'scalar': 1.0}, make()
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert finite(optax.apply_updates(params, updates))


def under(name, make, wrap):
  params, _ = steps(wrap(make()), params_of(name), count=4)
  assert finite(params)
  assert any(
      (a != b).any()
      for a, b in zip(*map(jax.tree.leaves, (params, params_of(name))))
  )


def scaled_loss(name, make):
  """float16 with a loss scaled until a gradient overflows, and skipped."""
  params = params_of(name, jnp.float16)
  tx = optax.apply_if_finite(make(), 10)
  state = tx.init(params)
  step = jax.jit(tx.update)
  inf = jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), params)
  for grads in (params, inf, params):
    updates, state = step(grads, state, params)
    assert finite(updates)
  assert int(state.total_notfinite) == 1


def lookahead(name, make):
  params = optax.LookaheadParams.init_synced(params_of(name))
  tx = optax.lookahead(make(), sync_period=2, slow_step_size=0.5)
  state, grads = tx.init(params), params_of(name)
  for _ in range(3):
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  assert finite(params)


def instances(name, make):
  """vmap over two models gives what each gives by itself."""
  many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params_of(name))
  one = jax.tree.map(lambda p: p[1], many)
  step = lambda p: make().update(p, make().init(p), p)[0]
  got = jax.jit(jax.vmap(step))(many)
  for a, b in zip(*map(jax.tree.leaves, (got, jax.jit(step)(one)))):
    np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6)


def flax_train_state(name, make):
  state = train_state.TrainState.create(
      apply_fn=None, params=params_of(name), tx=make()
  )
  for _ in range(2):
    state = jax.jit(lambda s: s.apply_gradients(grads=s.params))(state)
  assert finite(state.params)


def flax_nnx(name, make):
  model = nnx.Linear(3, 2, use_bias=name not in MATRICES_ONLY, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3))) ** 2))(model)
    optimizer.update(model, grads)

  for _ in range(2):
    step(model, optimizer)
  assert finite(model.kernel[...])


def equinox_filter(name, make):
  """A module with an array, a number and a function in it."""
  eqx = pytest.importorskip('equinox', reason='needs equinox')
  tree = {'w': jnp.ones((3, 2)), 'activation': jnp.tanh, 'width': 2}
  params = eqx.filter(tree, eqx.is_inexact_array)
  tx = make()
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert callable(eqx.apply_updates(tree, updates)['activation'])


def pickled(name, make):
  params = params_of(name)
  tx = make()
  _, state = jax.jit(tx.update)(params, tx.init(params), params)
  back = pickle.loads(pickle.dumps(state))
  for a, b in zip(*map(jax.tree.leaves, (state, back))):
    np.testing.assert_array_equal(a, b)


def specs(name, make):
  """`optax.tree.map_params` gives a parameter's spec to its own shape alone."""
  params = params_of(name)
  state = jax.eval_shape(make().init, params)
  masked = lambda leaf: isinstance(leaf, optax.MaskedNode)
  marked = optax.tree.map_params(
      make(), lambda leaf, p: masked(leaf) or leaf.shape == p.shape, state,
      params, transform_non_params=lambda _: True, is_leaf=masked,
  )
  assert all(jax.tree.leaves(marked)), state


def injected_narrow(name, make):
  """Numbers that bfloat16 rounds to 1 are refused, in a line that says why."""
  if not isinstance(make, functools.partial):
    pytest.skip('has no numbers of its own')
  options = {k: v for k, v in make.keywords.items() if not isinstance(v, str)}
  params = params_of(name, jnp.bfloat16)
  tx = optax.inject_hyperparams(make.func)(RATE, **options)
  try:
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  except ValueError as error:
    assert 'hyperparam_dtype' in str(error)
  else:
    assert finite(updates)
    assert all(x.any() for x in jax.tree.leaves(updates))
  wide = optax.inject_hyperparams(make.func, hyperparam_dtype=jnp.float32)
  tx = wide(RATE, **options)
  assert finite(jax.jit(tx.update)(params, tx.init(params), params)[0])


def wrapper(wrap):
  return lambda name, make: under(name, make, wrap)


SUMS = '3,000 steps in bfloat16'
CELLS = {
    'strict promotion': strict,
    'bfloat16': functools.partial(low_precision, dtype='bfloat16'),
    'float16': functools.partial(low_precision, dtype='float16'),
    'float64': double,
    SUMS: sums,
    'donated state': donated,
    'gradient through a step': through_a_step,
    'empty leaves': empty,
    'a Python float': python_float,
    'chain': wrapper(
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx)
    ),
    'masked': wrapper(lambda tx: optax.masked(
        tx, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    )),
    'partition': wrapper(lambda tx: optax.partition(
        {'yes': tx, 'no': optax.set_to_zero()},
        lambda p: jax.tree.map(lambda x: 'yes' if x.ndim > 1 else 'no', p),
    )),
    'MultiSteps': wrapper(lambda tx: optax.MultiSteps(tx, every_k_schedule=2)),
    'EMA': wrapper(lambda tx: optax.chain(tx, optax.ema(0.5))),
    'schedule-free': wrapper(
        lambda tx: optax.contrib.schedule_free(tx, learning_rate=RATE)
    ),
    'apply_if_finite, float16': scaled_loss,
    'lookahead': lookahead,
    'vmap over models': instances,
    'flax TrainState': flax_train_state,
    'nnx.Optimizer': flax_nnx,
    'equinox.filter': equinox_filter,
    'pickle': pickled,
    'map_params': specs,
    'inject_hyperparams, bfloat16': injected_narrow,
}
# Of optax 0.2.8.
_ADAM_FAILS = (
    'strict promotion', 'bfloat16', 'float16', SUMS,
    'gradient through a step', 'inject_hyperparams, bfloat16',
)
PEERS_FAIL = {
    'optax.adamw': _ADAM_FAILS,
    'optax.contrib.muon': (*_ADAM_FAILS, 'empty leaves', 'a Python float'),
}


def cells():
  for name, make in (OURS | PEERS).items():
    for cell, check in CELLS.items():
      fails = cell in PEERS_FAIL.get(name, ())
      mark = [pytest.mark.xfail(strict=True)] if fails else []
      yield pytest.param(name, make, check, id=f'{cell}-{name}', marks=mark)


# What has a relative in the table; and of the longest cell three are enough.
RELATIVES = (
    'adamuon', 'multi_scale_momentum', 'nonlinear_momentum',
    'delta_momentum_gram', 'at_frequency_1',
)
QUICK = [
    case.id for case in cells()
    if case.id in (f'{SUMS}-dgd', f'{SUMS}-m3', f'{SUMS}-optax.adamw')
    or not case.id.startswith(SUMS) and not case.id.endswith(RELATIVES)
]


@pytest.mark.filterwarnings('ignore:dgd')
@pytest.mark.parametrize(('name', 'make', 'check'), quick(cells(), QUICK))
def test_works_as_users_use_it(name, make, check):
  """If it fails, an optimizer of ours is one for plain loops only."""
  check(name, make)
