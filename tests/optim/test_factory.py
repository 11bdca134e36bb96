"""The optimizer of a run: its schedule, its levels, and what it decays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.config import ConfigError, OptimizerConfig
from hope_jax.optim import factory, frequency

CONFIG = OptimizerConfig(
    learning_rate=0.1, warmup_steps=4, weight_decay=0.1, clip_norm=1.0
)
PARAMS = {
    'embedding': jnp.ones((5, 4)),
    'head': jnp.ones((4, 5)),
    'layers': {
        'norm': {'scale': jnp.ones((2, 4))},
        'gate': {'bias': jnp.ones((2, 4))},
        'mixer': {
            'out': jnp.ones((2, 4, 4)), 'memory_k_w': jnp.ones((2, 2, 4, 4))
        },
        'continuum': {
            'level_0': {'up': jnp.ones((2, 4, 8))},
            'level_1': {'up': jnp.ones((2, 4, 8))},
        },
    },
}


def run(tx, grads):
  """Returns the parameters after each of the gradients, and the last state."""
  state = tx.init(PARAMS)
  params, trace = PARAMS, [PARAMS]
  update = jax.jit(tx.update)
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
    trace.append(params)
  return trace, state


def filled(value):
  return jax.tree.map(lambda p: jnp.full_like(p, value), PARAMS)


def test_schedule():
  """If it fails, the first step is wasted at rate 0 or the end is not the end.

  Against the formula, in NumPy.
  """
  schedule = factory.make_schedule(CONFIG, 20)
  for step in range(20):
    t = step + 1
    if t <= 4:
      expected = 0.1 * t / 4
    else:
      cosine = 0.5 * (1 + np.cos(np.pi * (t - 4) / 16))
      expected = 0.1 * (0.9 * cosine + 0.1)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


@pytest.mark.parametrize('warmup', [0, 7])
def test_schedule_without_a_part(warmup):
  """If it fails, no warm-up, or nothing but warm-up, gives NaN or rate 0."""
  config = dataclasses.replace(CONFIG, warmup_steps=warmup)
  schedule = factory.make_schedule(config, 7)
  assert 0 < float(schedule(0)) <= 0.1
  assert float(schedule(6)) == pytest.approx(0.01 if warmup == 0 else 0.1)


def test_warmup_longer_than_the_run():
  """If it fails, a run ends before its learning rate is reached, silently."""
  with pytest.raises(ConfigError, match='got 4 of 3'):
    factory.make_optimizer(CONFIG, 3)


def test_decay_only_where_it_belongs():
  """If it fails, norms, biases or embeddings are pulled to zero.

  With no gradient the only thing that moves a parameter is decay.
  """
  trace, _ = run(factory.make_optimizer(CONFIG, 20), [filled(0.0)])
  still = jax.tree.map(lambda p: bool((p == 1).all()), trace[-1])
  assert still == {
      'embedding': True,
      'head': False,
      'layers': {
          'norm': {'scale': True},
          'gate': {'bias': True},
          'mixer': {'out': False, 'memory_k_w': True},
          'continuum': {'level_0': {'up': False}, 'level_1': {'up': False}},
      },
  }


def test_first_step_is_adamw():
  """If it fails, the update is not AdamW's.

  By hand: the first direction of Adam is the gradient's sign.
  """
  trace, _ = run(factory.make_optimizer(CONFIG, 20), [filled(0.01)])
  rate = 0.1 / 4
  after = trace[-1]['head'][0, 0], trace[-1]['embedding'][0, 0]
  np.testing.assert_allclose(after[0], 1 - rate * (1 + 0.1), rtol=1e-5)
  np.testing.assert_allclose(after[1], 1 - rate, rtol=1e-5)


def test_clipping_is_global():
  """If it fails, one huge gradient moves what it belongs to without bound.

  Adam hides a common factor, so the second step is compared: after a gradient
  of norm 1e6 it must be what it is after the same gradient of norm 1.
  """
  norm = float(optax.global_norm(filled(1.0)))
  tx = factory.make_optimizer(CONFIG, 20)
  huge, _ = run(tx, [filled(1e6), filled(0.01)])
  unit, _ = run(tx, [filled(1.0 / norm), filled(0.01)])
  np.testing.assert_allclose(huge[-1]['head'], unit[-1]['head'], rtol=1e-5)


@pytest.mark.parametrize('power, factor', [(0.0, 1), (0.5, 3**0.5), (1.0, 3)])
def test_level_takes_the_rate_of_the_step(power, factor):
  """If it fails, a slow level follows the schedule at 1/p of its speed.

  With decay off, level 1 of period 3 sees a constant gradient, so that each of
  its updates has length `learning rate` times 3^power: those of steps 3 and 6.
  """
  config = dataclasses.replace(CONFIG, weight_decay=0.0, level_power=power)
  tx = factory.make_optimizer(config, 20, level_periods=(1, 3))
  trace, state = run(tx, [filled(0.01)] * 7)
  level = [
      float(p['layers']['continuum']['level_1']['up'][0, 0, 0]) for p in trace
  ]
  rates = [float(factory.make_schedule(config, 20)(s)) for s in range(7)]
  expected = np.array([0, 0, rates[2], 0, 0, rates[5], 0]) * factor
  np.testing.assert_allclose(-np.diff(level), expected, atol=1e-6)
  assert {k: int(v) for k, v in frequency.update_counts(state).items()} == {
      'base': 7, 'level_0': 7, 'level_1': 2,
  }


@pytest.mark.parametrize('name', ['adamw', 'lion', 'm3', 'dgd'])
def test_level_power_scales_all_that_moves(name):
  """If it fails, a level's decay, or a rate of its own, is left behind."""
  config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=4)
  moves = []
  for power in (0.0, 1.0):
    scaled = dataclasses.replace(config, level_power=power)
    tx = factory.make_optimizer(scaled, 20, level_periods=(1, 3))
    trace, _ = run(tx, [filled(0.01)] * 3)
    moves.append(jax.tree.map(lambda a, b: b - a, trace[2], trace[3]))
  once, thrice = moves
  np.testing.assert_allclose(
      thrice['layers']['continuum']['level_1']['up'],
      3 * once['layers']['continuum']['level_1']['up'], rtol=1e-4,
  )
  np.testing.assert_array_equal(once['head'], thrice['head'])


def test_levels_without_periods_are_ordinary():
  """If it fails, in-context levels, which have no outer period, are refused."""
  trace, state = run(factory.make_optimizer(CONFIG, 20), [filled(0.01)])
  assert set(frequency.update_counts(state)) == {'base'}
  assert (trace[-1]['layers']['continuum']['level_1']['up'] != 1).all()


def test_periods_that_do_not_nest_name_the_field():
  """If it fails, the message does not say which setting to change."""
  with pytest.raises(ConfigError, match='ContinuumConfig.periods'):
    factory.make_optimizer(CONFIG, 20, level_periods=(2, 3))


@pytest.mark.parametrize('eps', [1e-15, 1e-8])
def test_eps_decides_which_gradients_still_move(eps):
  """If it fails, what is learned to a loss of 1e-10 stays as inexact as it is.

  Adam's first step is the rate times g / (g + eps).
  """
  config = dataclasses.replace(CONFIG, eps=eps, weight_decay=0.0)
  trace, _ = run(factory.make_optimizer(config, 20), [filled(1e-12)])
  moved = PARAMS['head'] - trace[1]['head']
  rate = float(factory.make_schedule(config, 20)(0))
  expected = rate * 1e-12 / (1e-12 + eps)
  np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-7)
