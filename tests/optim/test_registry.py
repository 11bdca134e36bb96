"""Optimizers by name: options, rates, decay and levels of each of them."""

from collections.abc import Sequence
import dataclasses
import inspect
import math
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import optim
from hope_jax.config import ConfigError, OptimizerConfig, from_dict, to_dict
from hope_jax.optim import factory, registry

NAMES = list(registry.OPTIMIZERS)
every = pytest.mark.parametrize('name', NAMES)
PARAMS = {
    'embedding': jnp.ones((5, 4)),
    'head': jnp.ones((4, 5)),
    'layers': {
        'norm': {'scale': jnp.ones((2, 4))},
        'continuum': {
            'level_0': {'up': jnp.ones((2, 4, 8))},
            'level_1': {'up': jnp.ones((2, 4, 8))},
        },
    },
}


def config_of(name, **fields):
  fields = {
      'learning_rate': 0.01, 'warmup_steps': 0, 'final_learning_rate': 1.0,
  } | fields
  return OptimizerConfig(name=name, **fields)


def grads_at(step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
      lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS
  )


def run(config, grads, periods=()):
  """Returns the parameters after each of the gradients."""
  tx = factory.make_optimizer(config, 20, periods)
  state, params, trace = tx.init(PARAMS), PARAMS, [PARAMS]
  update = jax.jit(tx.update)
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
    trace.append(params)
  return trace


def bits(x):
  return np.asarray(x).view(np.uint32).tolist()


def test_all_of_optim_can_be_chosen():
  """If it fails, the trainer does not offer what the package is about."""
  scaled = {n.removeprefix('scale_by_') for n in optim.__all__ if 'scale_' in n}
  assert scaled <= set(NAMES)
  assert {'adamw', 'adam', 'lion', 'sgd', 'momentum'} <= set(NAMES)


def test_the_configuration_lists_them():
  """If it fails, --help names optimizers that are not there, or leaves out."""
  source = inspect.getsource(OptimizerConfig)
  comment = source[: source.index('name: str')]
  words = comment.replace('#', ' ').replace(',', ' ').replace('.', ' ').split()
  assert set(NAMES) <= set(words)


@every
def test_moves_each_level_at_its_period(name):
  """If it fails, an optimizer cannot be an outer level, or not hold still.

  Level 1, of period 2, holds still at odd steps, bit for bit; everything else
  moves at each, and what moves is finite.
  """
  trace = run(config_of(name), map(grads_at, range(4)), periods=(1, 2))
  for t, (a, b) in enumerate(zip(trace, trace[1:]), 1):
    moved = jax.tree.map(lambda x, y: bits(x) != bits(y), a, b)
    slow = moved['layers']['continuum'].pop('level_1')
    assert slow['up'] == (t % 2 == 0)
    assert all(jax.tree.leaves(moved)), moved
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(trace[-1]))


@every
def test_decays_what_projects(name):
  """If it fails, weight decay depends on the optimizer that it is around.

  With no gradient decay alone moves a parameter: by rate x decay.
  """
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  (_, after) = run(config_of(name, weight_decay=0.5), [zeros])
  decayed = 1 - 0.01 * 0.5
  np.testing.assert_allclose(after['head'], decayed, rtol=1e-6)
  np.testing.assert_allclose(
      after['layers']['continuum']['level_1']['up'], decayed, rtol=1e-6
  )
  assert (after['embedding'] == 1).all()
  assert (after['layers']['norm']['scale'] == 1).all()


@every
def test_is_the_optimizer_of_that_name(name):
  """If it fails, a name trains with something else.

  Against the factory itself, at the rate of the run, without what is around.
  """
  entry = registry.get(name)
  options = {'stacked': 'layers'} if 'stacked' in entry.options else {}
  if 'weight_decay' in entry.parameters:
    options['weight_decay'] = 0.0
  if name == 'adamw':
    options['b2'] = 0.95  # the trainer's
  tx = entry.factory(0.01, **options)
  state, params = tx.init(PARAMS), PARAMS
  for step in range(3):
    updates, state = jax.jit(tx.update)(grads_at(step), state, params)
    params = optax.apply_updates(params, updates)
  got = run(
      config_of(name, weight_decay=0.0, clip_norm=1e9), map(grads_at, range(3))
  )[-1]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      got, params,
  )


def test_adamw_is_bit_for_bit_what_it_was():
  """If it fails, committed results and checkpoints are another optimizer's.

  The same numbers, and a state of the same structure, as the chain that runs
  were trained with before there were names.
  """
  config = OptimizerConfig(learning_rate=0.01, warmup_steps=2, b2=0.9, eps=1e-6)

  def direction():
    return optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.9, eps=1e-6),
        optax.add_decayed_weights(0.1, mask=factory.decay_mask),
        optax.scale(-1.0),
    )

  levels = {
      'base': (direction(), 1), 'level_0': (direction(), 1),
      'level_1': (direction(), 3),
  }
  before = optax.chain(
      optax.clip_by_global_norm(1.0),
      optim.nested(levels, factory.level_labels),
      optax.scale_by_schedule(factory.make_schedule(config, 20)),
  )
  now = factory.make_optimizer(config, 20, (1, 3))
  states = [before.init(PARAMS), now.init(PARAMS)]
  for step in range(7):
    updates = []
    for i, tx in enumerate((before, now)):
      u, states[i] = jax.jit(tx.update)(grads_at(step), states[i], PARAMS)
      updates.append(u)
    jax.tree.map(lambda a, b: bits(a) == bits(b) or pytest.fail(), *updates)
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
    ('name', 'option'),
    [('m3', 'adam_learning_rate'), ('dgd', 'fallback_learning_rate')],
)
def test_a_rate_among_the_options_is_the_peak(name, option):
  """If it fails, a second learning rate is multiplied by the first.

  Adam's first step is as long as its rate, on the leaves that are no matrices.
  """
  config = config_of(
      name, learning_rate=0.5, weight_decay=0.0, options={option: 0.003}
  )
  (_, after) = run(config, [grads_at(0)])
  np.testing.assert_allclose(
      jnp.abs(after['embedding'] - 1), 0.003, rtol=1e-3
  )


@pytest.mark.parametrize(
    ('fields', 'complaint'),
    [
        ({'name': 'm4'}, "unknown optimizer 'm4'; did you mean 'm3'?"),
        ({'name': 'shampoo'}, "optimizer 'shampoo'; known: adamw, adam, lion"),
        ({'name': 'm3', 'options': {'perod': 3}}, "did you mean 'period'?"),
        ({'name': 'm3', 'options': {'period': 1.5}},
         "'period' of m3 must be a whole number; got 1.5"),
        ({'name': 'm3', 'options': {'period': True}}, 'a whole number'),
        ({'name': 'm3', 'options': {'period': 0}}, 'period'),
        ({'name': 'm3', 'options': {'accumulate': 'mean'}}, "'ema' or 'sum'"),
        ({'name': 'm3', 'options': {'rms': 'big'}}, 'a number or none'),
        ({'name': 'm3', 'options': {'label_fn': 'x'}}, 'must be none'),
        ({'name': 'm3', 'options': {'weight_decay': 0.1}}, 'no option'),
        ({'name': 'deep_momentum', 'options': {'hidden': (4, 'x')}},
         'a tuple, each a whole number'),
        ({'name': 'sgd', 'options': {'nesterov': 1}}, 'true or false'),
        ({'name': 'adamw', 'options': {'mu_dtype': 'float99'}}, 'float99'),
    ],
)
def test_a_mistake_is_named(fields, complaint):
  """If it fails, an option is ignored, or ends in a trace."""
  with pytest.raises(ConfigError, match='^[^\n]+$') as error:
    factory.make_optimizer(OptimizerConfig(**fields), 1000)
  assert complaint in str(error.value)


@pytest.mark.parametrize(
    ('fields', 'complaint'),
    [
        ({'name': 'm3', 'b1': 0.8}, "optimizer.b1 is not read by 'm3'"),
        ({'name': 'm3', 'b1': 0.9}, 'optimizer.b1'),
        ({'name': 'lion', 'eps': 1e-8}, 'optimizer.options.NAME'),
        ({'options': {'b1': 0.8}}, 'is the field optimizer.b1'),
        ({'eps': 0.0}, 'eps: must be in'),
    ],
)
def test_a_field_that_is_not_read_is_refused(fields, complaint):
  """If it fails, config.json holds settings that nothing followed."""
  with pytest.raises(ConfigError, match=complaint):
    OptimizerConfig(**fields)


def test_the_configuration_holds_what_runs():
  """If it fails, a run cannot be gone on with: its config.json differs.

  JSON turns tuples into lists. What another optimizer does not read is None.
  """
  config = from_dict({
      'optimizer': {'name': 'deep_momentum', 'options': {'hidden': [8, 4]}}
  })
  assert config.optimizer.options == {'hidden': (8, 4)}
  assert config.optimizer.b2 is None
  assert from_dict(to_dict(config)) == config
  plain = OptimizerConfig()
  assert (plain.b1, plain.b2, plain.eps) == (0.9, 0.95, 1e-8)
  assert dataclasses.replace(plain, weight_decay=0.0).b2 == 0.95


def test_a_name_is_given_once():
  """If it fails, an import changes what other code's configurations mean."""
  with pytest.raises(ValueError, match="'m3' is there already"):
    registry.register('m3', registry.Optimizer(optax.sgd, rate=1.0))


@every
def test_rates_are_usable(name):
  """If it fails, a study's search starts nowhere."""
  entry = registry.get(name)
  assert 1e-5 < entry.rate < 1 and math.isfinite(entry.rate)
  assert (entry.dot_general is not None) == (name == 'dgd')


def test_optimizers_come_alone():
  """If it fails, whoever wants an optimizer has to wait for a trainer."""
  code = (
      'import sys; from hope_jax import optim; from hope_jax.optim import'
      ' registry; print(*(m for m in ("orbax", "grain", "flax") if m in'
      ' {n.partition(".")[0] for n in sys.modules}))'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert not done.stdout.strip()


NUMBERS = [
    (name, option)
    for name, entry in registry.OPTIMIZERS.items()
    for option, parameter in entry.options.items()
    if {float, int, Sequence[float], Sequence[int], complex}
    & {parameter.annotation, *typing.get_args(parameter.annotation)}
]


@pytest.mark.parametrize(('name', 'option'), NUMBERS)
def test_a_number_out_of_range_is_refused(name, option):
  """If it fails, a run is no number by its third step, without a word."""
  default = registry.get(name).options[option].default
  several = isinstance(default, tuple)
  registry.check_options(name, {option: default})
  for value in (-1.0, -1, math.nan, math.inf, -math.inf, 10**399):
    value = (value,) if several else value
    with pytest.raises(ValueError, match='^[^\n]{,300}$') as error:
      registry.check_options(name, {option: value})
    assert repr(option) in str(error.value)


def test_every_number_has_a_range():
  """If it fails, an option is new and may be anything."""
  assert len(NUMBERS) > 30
  for name, option in NUMBERS:
    assert option in registry.RANGES or option in registry.get(name).rates()
