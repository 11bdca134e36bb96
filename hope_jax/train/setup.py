"""What a configuration makes of a model: mesh, optimizer, state and step.

One place for all that train, measure or plan a run, so that they agree. Nothing
is allocated before `create`: `step.lower(shapes, batch)` compiles a run that
fits no machine at hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from hope_jax import sharding
from hope_jax.config import Config, ConfigError
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.optim import factory, registry
from hope_jax.train import losses
from hope_jax.train import state as state_lib
from hope_jax.train import step as step_lib


class Setup(NamedTuple):
  """A run before its first step; to be used under `jax.set_mesh(mesh)`."""

  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  # Shape, dtype and sharding of each array of the state.
  shapes: state_lib.TrainState
  # () -> the state at step 0
  create: Callable[[], state_lib.TrainState]
  # (state, batch) -> (state, metrics), jitted; the new state takes the memory
  # of the old one.
  step: Callable[..., Any]


def make(
    config: Config, model: Any, loss_fn: losses.LossFn | None = None
) -> Setup:
  """Returns the parts of a run.

  Args:
    config: the run.
    model: a Flax module as `losses.make_loss_fn` and `state.create` take it.
    loss_fn: what is minimised; None: `losses.make_loss_fn`.

  Raises:
    ConfigError: the devices do not make the mesh, or the optimizer does not fit
      the configuration or the model.
  """
  mesh = sharding.make_mesh(config.mesh)
  optimizer = make_optimizer(config)
  length = config.data.sequence_length
  params = state_lib.param_shapes(model, length, mesh)
  try:
    shapes = state_lib.state_shapes(params, optimizer, mesh)
  except ValueError as error:
    raise ConfigError(
        f'optimizer {config.optimizer.name!r}: {error}'
    ) from error
  step = step_lib.make_train_step(
      _loss_fn(config, model, loss_fn),
      optimizer,
      config.optimizer.accumulate,
      factory.make_schedule(config.optimizer, config.train.steps),
      config.train.not_finite == 'skip',
  )
  return Setup(
      mesh,
      optimizer,
      shapes,
      create=lambda: state_lib.create(
          model, optimizer, length, config.train.seed, mesh
      ),
      step=jax.jit(
          step,
          donate_argnums=0,
          out_shardings=(jax.tree.map(lambda x: x.sharding, shapes), None),
      ),
  )


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Returns the outer optimizer of a run.

  Raises:
    ConfigError: the optimizer, its options, the schedule or the periods cannot
      be.
  """
  return factory.make_optimizer(
      config.optimizer, config.train.steps, level_periods(config)
  )


def level_periods(config: Config) -> tuple[int, ...]:
  """Returns the outer update periods of the model's levels; () for none."""
  has_levels = ARCHITECTURES[config.model.architecture].levels
  continuum = config.model.continuum
  return continuum.periods if has_levels and continuum.regime == 'outer' else ()


def _loss_fn(
    config: Config, model: Any, loss_fn: losses.LossFn | None
) -> losses.LossFn:
  """The loss, its layers with the dot products that the optimizer needs."""
  dot_general = registry.get(config.optimizer.name).dot_general
  if dot_general is None:
    return loss_fn or losses.make_loss_fn(model)
  if loss_fn is not None or not hasattr(model, 'dot_general'):
    who = 'a loss of its own' if loss_fn else type(model).__name__
    raise ConfigError(
        f'optimizer {config.optimizer.name!r} needs a model with the attribute'
        f' dot_general, for the dot products of its layers; {who} has none'
    )
  return losses.make_loss_fn(model.clone(dot_general=dot_general()))
