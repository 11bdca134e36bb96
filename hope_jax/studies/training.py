"""One run of a study on a task: a model of its configuration, trained."""

from collections.abc import Callable
import dataclasses
import functools
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import interrupts
from hope_jax.config import Config, ConfigError
from hope_jax.models import factory
from hope_jax.tasks.labelling import Arrays, Epochs
from hope_jax.train import loop
from hope_jax.types import PyTree

# (model, parameters) -> scores by name.
Score = Callable[[Any, PyTree], dict[str, float]]


class Trained(NamedTuple):
  """A trained model, and how it came to be."""

  model: Any
  params: PyTree
  # steps, stopped, loss, tokens_per_second (median), parameters, state_bytes.
  facts: dict[str, Any]


def on_labels(
    config: Config,
    arrays: Arrays,
    vocab: int,
    *,
    score: Score | None = None,
    until: Callable[[dict[str, float]], bool] | None = None,
) -> Trained:
  """Trains a model on a split of a task.

  Args:
    config: the run; `model.vocab_size` is replaced.
    arrays: see `tasks.labelling`.
    vocab: tokens, or symbols of a set if they are more.
    score: called each `train.eval_every` steps; None: never.
    until: scores -> whether training may end.

  Returns:
    The model.

  Raises:
    ConfigError: `train.max_seconds` left no time to measure anything.
    Stopped: by a signal.
  """
  config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, vocab_size=vocab)
  )
  model = factory.language_model(config.model)
  trained = loop.train(
      model,
      Epochs(arrays, config.data.batch_size, config.data.seed),
      config,
      evaluate=None if score is None else functools.partial(score, model),
      until=until,
  )
  if trained.stopped.startswith('SIG'):
    raise interrupts.Stopped(trained.stopped)
  records = [r for r in trained.history if r['split'] == 'train']
  if not records:
    raise ConfigError(
        f'train.max_seconds={config.train.max_seconds:g} ended the run at step'
        f' {int(trained.state.step)}, before anything was measured'
        f' (train.log_every={config.train.log_every})'
    )
  speed = statistics.median(r['tokens_per_second'] for r in records)
  return Trained(model, trained.state.params, {
      'steps': int(trained.state.step),
      'stopped': trained.stopped,
      'loss': records[-1]['loss'],
      'tokens_per_second': round(speed),
      'parameters': parameter_count(trained.state.params),
      'state_bytes': state_bytes(model, trained.state.params),
  })


def parameter_count(params: PyTree) -> int:
  """Returns how many numbers are trained."""
  return sum(x.size for x in jax.tree.leaves(params))


def state_bytes(model: Any, params: PyTree) -> int:
  """Returns what a sequence carries from token to token, in bytes."""
  token = jnp.zeros((1, 1), jnp.int32)
  _, state = jax.eval_shape(
      lambda params: model.apply({'params': params}, token), params
  )
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
