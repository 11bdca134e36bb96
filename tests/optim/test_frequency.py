"""Levels of the outer optimizer move when they should, and not otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.optim import frequency

PARAMS = {'fast': jnp.array([1.0, -2.0]), 'slow': jnp.array([0.5, -0.0, 3.0])}


def label_fn(params):
  return {name: name for name in params}


def grads_at(step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
      lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS
  )


def run(tx, steps, params=PARAMS):
  """Returns the parameters after each step, and the last state."""
  state = tx.init(params)
  trace = [params]

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for i in range(steps):
    params, state = step(params, state, grads_at(i))
    trace.append(params)
  return trace, state


def bits(x):
  return np.asarray(x).view(np.uint32).tolist()


@pytest.mark.parametrize('period', [2, 3, 5])
def test_cadence(period):
  """If it fails, the frequency of a level is not what Def. 2 says.

  It must move at multiples of its period and hold still in between, bit for
  bit; there is a -0.0 among the parameters.
  """
  tx = frequency.nested(
      {'fast': (optax.adam(0.1), 1), 'slow': (optax.adam(0.1), period)},
      label_fn,
  )
  trace, state = run(tx, 11)
  moved = [
      bits(a['slow']) != bits(b['slow']) for a, b in zip(trace, trace[1:])
  ]
  assert moved == [(i + 1) % period == 0 for i in range(11)]
  assert all(
      bits(a['fast']) != bits(b['fast']) for a, b in zip(trace, trace[1:])
  )
  counts = frequency.update_counts(state)
  assert {k: int(v) for k, v in counts.items()} == {
      'fast': 11, 'slow': 11 // period,
  }


def test_update_is_that_of_the_mean_gradient():
  """If it fails, the accumulator drops or repeats gradients, or is not cleared.

  Against NumPy: plain gradient descent on the mean of each period.
  """
  trace, _ = run(frequency.at_frequency(optax.sgd(0.5), 3), 6)
  expected = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}
  for start in (0, 3):
    for name in expected:
      mean = np.mean(
          [np.asarray(grads_at(start + i)[name]) for i in range(3)], axis=0
      )
      expected[name] = expected[name] - 0.5 * mean
  for name in expected:
    np.testing.assert_allclose(trace[-1][name], expected[name], rtol=1e-6)


def test_period_one_is_the_optimizer_itself():
  """If it fails, levels cost a plain Transformer its exact optimizer."""
  plain, _ = run(optax.adam(0.1), 4)
  level, state = run(frequency.at_frequency(optax.adam(0.1), 1), 4)
  for a, b in zip(plain, level):
    assert bits(a['slow']) == bits(b['slow'])
  assert jax.tree.leaves(state.accumulator) == []
  assert int(frequency.update_counts(state)['all']) == 4


def test_bfloat16_gradients_accumulate_in_float32():
  """If it fails, long periods lose gradients: 256 + 1 = 256 in bf16."""
  params = jnp.zeros([], jnp.bfloat16)
  tx = frequency.at_frequency(optax.identity(), 4)
  state = tx.init(params)
  for g in (256.0, 1.0, 1.0, 2.0):
    update, state = tx.update(jnp.bfloat16(g), state, params)
  assert update.dtype == jnp.bfloat16
  assert float(update) == float(jnp.bfloat16(65.0))


@pytest.mark.parametrize('period', [0, -2, 1.5, True])
def test_bad_period(period):
  """If it fails, a period that means nothing is trained with."""
  with pytest.raises(ValueError, match='positive integer'):
    frequency.at_frequency(optax.sgd(1.0), period)
  with pytest.raises(ValueError, match="level 'slow'"):
    frequency.nested({'slow': (optax.sgd(1.0), period)}, label_fn)


def test_periods_that_do_not_nest():
  """If it fails, a slow level may move while a faster one holds still."""
  levels = {'a': (optax.sgd(1.0), 2), 'b': (optax.sgd(1.0), 3)}
  with pytest.raises(ValueError, match="3 of level 'b' .* 2 of .* 'a'"):
    frequency.nested(levels, label_fn)


def test_extra_arguments_reach_the_optimizer():
  """If it fails, optimizers that want the loss or inputs cannot be levels."""

  def update(grads, state, params=None, *, scale):
    del params
    return jax.tree.map(lambda g: g * scale, grads), state

  tx = optax.GradientTransformationExtraArgs(lambda p: (), update)
  tx = frequency.at_frequency(tx, 2)
  state = tx.init(jnp.zeros([]))
  _, state = tx.update(jnp.ones([]), state, scale=3.0)
  out, _ = tx.update(jnp.ones([]), state, scale=3.0)
  assert float(out) == 3.0


def test_accumulates_in_the_parameters_precision():
  """If it fails, float64 is float32, and complex numbers lose a part."""
  with jax.enable_x64(True):
    for dtype, g in (('float64', 1 + 1e-12), ('complex128', 1 + 1e-12j)):
      tx = frequency.at_frequency(optax.identity(), 2)
      params = jnp.zeros(2, dtype)
      state = tx.init(params)
      for _ in range(2):
        update, state = tx.update(jnp.full(2, g, dtype), state, params)
      assert update.dtype == dtype
      np.testing.assert_array_equal(update, g)
