"""The Continuum Memory System: forward variants and in-context updates."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import continuum

_PATH = pathlib.Path(__file__).parents[1] / 'oracles' / 'continuum.py'
_SPEC = importlib.util.spec_from_file_location('continuum_oracle', _PATH)
oracle = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(oracle)

D, F, T = 4, 5, 24
PERIODS, RATES = (2, 4, 12), (0.11, 0.07, 0.05)
WEIGHTS = np.array([1.0, 0.5, -0.7])


def make(seed=0):
  rng = np.random.default_rng(seed)
  theta = [
      {'a': 0.5 * rng.normal(size=(D, F)), 'b': 0.5 * rng.normal(size=(F, D))}
      for _ in PERIODS
  ]
  return theta, rng.normal(size=(T, D)), rng.normal(size=(T, D))


def options(
    variant='sequential', accumulate='mean', outer='exact', rates=RATES
):
  return continuum.Options(PERIODS, rates, variant, outer, accumulate)


def read(theta, x, target, state, chosen):
  """Reads x in chunks of the fastest period; outputs and fast weights."""
  theta = tuple(theta)

  def loss(offset, x, target):
    weights = jax.tree.map(jnp.add, theta, offset)
    levels = [lambda z, w=w: jnp.tanh(z @ w['a']) @ w['b'] for w in weights]
    y = continuum.chain(
        x, levels,
        jnp.asarray(WEIGHTS) if chosen.variant == 'independent' else None,
    )
    return 0.5 * jnp.sum((y - target) ** 2), y

  def body(state, xs):
    y, state = continuum.chunk(
        loss, state, *xs, tokens=PERIODS[0], options=chosen
    )
    return state, (y, state.offset)

  cut = lambda a: jnp.asarray(a).reshape(-1, PERIODS[0], D)
  state, (y, offsets) = jax.lax.scan(body, state, (cut(x), cut(target)))
  return y.reshape(-1, D), state, offsets


def start(theta, chosen):
  theta = jax.tree.map(jnp.asarray, tuple(theta))
  return theta, continuum.fast_state(theta, chosen)


@pytest.mark.parametrize('accumulate', ['mean', 'sum'])
@pytest.mark.parametrize('variant', ['sequential', 'nested', 'independent'])
def test_fast_weights_are_the_oracles(x64, variant, accumulate):
  """If this fails, a level moves at another time or by another amount."""
  theta, x, target = make()
  chosen = options(variant, accumulate)
  y, state, _ = read(*start(theta, chosen)[:1], x, target,
                     start(theta, chosen)[1], chosen)
  expected, weights, moves = oracle.run(
      theta, WEIGHTS, x, target, periods=PERIODS, rates=RATES,
      variant=variant, accumulate=accumulate,
  )
  np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)
  for i, level in enumerate(weights):
    for name in level:
      np.testing.assert_allclose(
          theta[i][name] + state.offset[i][name], level[name],
          rtol=1e-11, atol=1e-12,
      )
  assert moves == [T // p for p in PERIODS]


def test_a_level_stands_still_between_its_updates(x64):
  """If this fails, a level moves more often than its period says."""
  theta, x, target = make()
  chosen = options()
  theta, state = start(theta, chosen)
  _, _, offsets = read(theta, x, target, state, chosen)
  for i, period in enumerate(PERIODS):
    path = np.concatenate([np.zeros((1, D, F)), offsets[i]['a']])
    moved = np.any(path[1:] != path[:-1], axis=(1, 2))
    tokens = PERIODS[0] * (1 + np.arange(len(moved)))
    np.testing.assert_array_equal(moved, tokens % period == 0)


def test_a_stream_in_two_calls_is_one(x64):
  """If this fails, sums or counters are lost between calls."""
  theta, x, target = make()
  chosen = options('nested')
  theta, state = start(theta, chosen)
  whole, end, _ = read(theta, x, target, state, chosen)
  for cut in (2, 6, 14):
    a, middle, _ = read(theta, x[:cut], target[:cut], state, chosen)
    b, last, _ = read(theta, x[cut:], target[cut:], middle, chosen)
    np.testing.assert_allclose(np.concatenate([a, b]), whole, rtol=1e-12)
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-14),
        last, end,
    )


def test_causal_bit_for_bit():
  """If this fails, fast weights learn from what is yet to come."""
  theta, x, target = make()
  chosen = options()
  theta, state = start(theta, chosen)
  before, _, _ = read(theta, x, target, state, chosen)
  changed = x.copy()
  changed[13] += 1
  after, _, _ = read(theta, changed, target, state, chosen)
  np.testing.assert_array_equal(before[:13], after[:13])
  assert np.any(np.asarray(before[14:]) != np.asarray(after[14:]))


def test_exact_outer_gradient_is_the_finite_difference(x64):
  """If this fails, initial states are not meta-learned through the updates."""
  theta, x, target = make()
  chosen = options('nested')

  def outer(theta):
    state = continuum.fast_state(theta, chosen)
    y, _, _ = read(theta, x, target, state, chosen)
    return jnp.sum(y * jnp.asarray(target))

  theta, _ = start(theta, chosen)
  gradient = jax.grad(outer)(theta)
  rng = np.random.default_rng(1)
  direction = jax.tree.map(
      lambda p: jnp.asarray(rng.normal(size=p.shape)), theta
  )
  step = 1e-6
  move = lambda s: jax.tree.map(lambda p, d: p + s * d, theta, direction)
  numeric = (outer(move(step)) - outer(move(-step))) / (2 * step)
  analytic = sum(
      jnp.sum(g * d)
      for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
  )
  np.testing.assert_allclose(analytic, numeric, rtol=1e-6)
  for leaf in jax.tree.leaves(gradient):
    assert np.any(leaf != 0)


def test_first_order_meets_exact_where_rates_vanish(x64):
  """If this fails, the first-order gradient is not that of the same loss."""
  theta, x, target = make()

  def gradient(outer, rate):
    chosen = options(outer=outer, rates=(rate,) * 3)

    def loss(theta):
      state = continuum.fast_state(theta, chosen)
      y, _, _ = read(theta, x, target, state, chosen)
      return jnp.sum(y * jnp.asarray(target))

    flat = jax.tree.leaves(jax.grad(loss)(start(theta, chosen)[0]))
    return np.concatenate([np.ravel(leaf) for leaf in flat])

  gaps = [
      np.linalg.norm(gradient('exact', r) - gradient('first_order', r))
      for r in (1e-2, 1e-3, 0.0)
  ]
  assert gaps[2] == 0
  assert gaps[1] < 0.2 * gaps[0]  # the gap is of the order of the rate


def test_rate_zero_is_the_plain_chain(x64):
  """If this fails, a CMS that does not learn is not an MLP stack."""
  theta, x, target = make()
  chosen = options(rates=(0.0,) * 3)
  y, _, _ = read(*start(theta, chosen)[:1], x, target,
                 start(theta, chosen)[1], chosen)
  plain, _ = oracle.forward_backward(theta, WEIGHTS, x, target, 'sequential')
  np.testing.assert_allclose(y, plain, rtol=1e-12)
