"""The optimizer of a run: clipping, schedule, weight decay, level periods."""

from collections.abc import Sequence
import re

import jax
import optax

from hope_jax.config import ConfigError, OptimizerConfig
from hope_jax.optim import frequency, leaves, registry
from hope_jax.optim.precision import in_float32
from hope_jax.types import PyTree

# Never decayed, whatever their shape: a parameter, or the module that owns it,
# with such a name.
UNDECAYED = re.compile(
    'embed|norm|scale|bias|memory_|^(conv|initial|w_q)$'
)


def decay_mask(params: PyTree) -> PyTree:
  """Returns True where weight decay belongs: on matrices that project.

  Norms, biases, scalars, embeddings, the taps of convolutions and what inner
  memories start from are left alone: pulling those to zero changes what the
  model is, not how smooth it is. So is `w_q` of self-modifying Titans: it
  stands where the memory of queries would, and starts as the identity, as that
  does.
  """

  def decays(path, leaf):
    named = any(UNDECAYED.search(key) for key in leaves.keys(path)[-2:])
    return leaves.axes(path, leaf) >= 2 and not named

  return jax.tree_util.tree_map_with_path(decays, params)


def level_labels(params: PyTree) -> PyTree:
  """Returns 'level_i' below a continuum's level i, and 'base' elsewhere."""

  def label(path, _):
    keys = leaves.keys(path)
    if 'continuum' in keys:
      after = keys[keys.index('continuum'):]
      levels = [key for key in after if re.fullmatch(r'level_\d+', key)]
      if levels:
        return levels[0]
    return 'base'

  return jax.tree_util.tree_map_with_path(label, params)


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Returns the learning rate by step: linear warm-up, then a cosine.

  The step counted from 0 gets the rate of the end of its interval: the first
  one already moves, and the last one has the final rate.

  Args:
    config: peak, final share and warm-up steps.
    total_steps: the steps of the run.

  Raises:
    ConfigError: the warm-up is longer than the run.
  """
  warmup = config.warmup_steps
  if not 0 <= warmup <= total_steps:
    raise ConfigError(
        'OptimizerConfig.warmup_steps must be between 0 and train.steps; got'
        f' {warmup} of {total_steps}'
    )
  peak, cosine_steps = config.learning_rate, total_steps - warmup
  curve = optax.linear_schedule(0.0, peak, warmup)
  if cosine_steps:
    cosine = optax.cosine_decay_schedule(
        peak, cosine_steps, alpha=config.final_learning_rate
    )
    curve = optax.join_schedules([curve, cosine], [warmup])

  def schedule(step):
    with jax.numpy_dtype_promotion('standard'):  # which optax's schedules need
      return curve(step + 1)

  return schedule


def make_optimizer(
    config: OptimizerConfig,
    total_steps: int,
    level_periods: Sequence[int] = (),
) -> optax.GradientTransformation:
  """Returns the outer optimizer.

  Each step: the gradient is clipped by its global norm; each level accumulates
  its share and, once in its period, makes one update from the mean, by an
  optimizer of its own of the configured kind. The learning rate is that of the
  step at which the update happens, whatever the level's period. Weight decay is
  part of an update, so a level of period p decays p times as slowly; both are
  scaled by p^level_power.

  Args:
    config: the optimizer's fields.
    total_steps: length of the schedule.
    level_periods: the period of each level of the CMS, fastest first; empty
      where every parameter moves at every step.

  Returns:
    An optax transformation. `frequency.update_counts` reads from its state how
    often each level moved.

  Raises:
    ConfigError: the optimizer, its options, the schedule or the periods cannot
      be.
  """
  schedule = make_schedule(config, total_steps)
  levels = {'base': (_at_rate(1.0, config), 1)}
  for i, period in enumerate(level_periods):
    rate = period**config.level_power
    levels[f'level_{i}'] = (_at_rate(rate, config), period)
  try:
    by_level = frequency.nested(
        levels, level_labels if level_periods else _all_base
    )
  except ValueError as error:
    raise ConfigError(f'ContinuumConfig.periods: {error}') from error
  return in_float32(optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      by_level,
      optax.scale_by_schedule(schedule),
  ))


def _at_rate(
    rate: float, config: OptimizerConfig
) -> optax.GradientTransformation:
  """The optimizer with weight decay, at this share of the learning rate.

  Its updates are negated here and scaled by a positive rate outside, so that
  the -0.0 of a level that holds still stays -0.0.
  """
  options = dict(config.options)
  for name in ('b1', 'b2', 'eps'):  # AdamW's; None where there is another
    if getattr(config, name) is not None:
      options[name] = getattr(config, name)
  try:
    registry.check_options(config.name, options)
    optimizer = registry.get(config.name)
    for name in optimizer.rates():
      if options.get(name) is not None:
        # The rate outside multiplies this one too.
        options[name] *= rate / config.learning_rate
    if 'stacked' in optimizer.options:
      options.setdefault('stacked', leaves.STACKED)
    if 'mask' in optimizer.parameters:
      return optimizer.factory(
          rate, weight_decay=config.weight_decay, mask=decay_mask, **options
      )
    direction = optimizer.factory(rate, **options)
  except (TypeError, ValueError) as error:
    raise ConfigError(f'OptimizerConfig: {error}') from error
  return optax.chain(
      direction,
      optax.add_decayed_weights(-rate * config.weight_decay, mask=decay_mask),
  )


def _all_base(params: PyTree) -> PyTree:
  return jax.tree.map(lambda _: 'base', params)
