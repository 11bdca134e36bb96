"""A run, from its configuration: load, train, restore, evaluate.

What the command line does, for a notebook or another program:

  import hope_jax

  config = hope_jax.load('tiny', {'train.steps': 8, 'workdir': 'runs/eight'})
  result = hope_jax.train(config)
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import jax

from hope_jax import config as config_lib
from hope_jax import sharding
from hope_jax.config import (
  Config,
  ConfigError,
  ModelConfig,
  OptimizerConfig,
  architectures,
  experiment,
)
from hope_jax.config.build import folder
from hope_jax.data import pipeline
from hope_jax.data import tokenizer as tokenizer_lib
from hope_jax.evals import text
from hope_jax.infer.session import Session
from hope_jax.models import factory
from hope_jax.train import checkpoint as checkpoint_lib
from hope_jax.train import failures, loop, setup
from hope_jax.train import state as state_lib
from hope_jax.types import PyTree

# A str among the values is read as on the command line: '1,4' is (1, 4).
Overrides = Mapping[str, Any] | Sequence[tuple[str, Any]]


def load(
    path: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    *,
    workdir: str | os.PathLike[str] | None = None,
) -> Config:
  """Builds the configuration of a run.

  Args:
    path: an experiment file, which is Python and is run; the name of one that
      comes with the package; either with `:ARGUMENT`. None: the configuration
      of the workdir.
    overrides: dotted field names and their values, on top of it.
    workdir: folder of the run; None: what the experiment says, else runs/NAME.

  Raises:
    ConfigError: neither is given, or something in them is wrong.
  """
  path = os.fspath(path or '')
  workdir = folder(os.fspath(workdir or ''), '--workdir')
  if path:
    values = _of_file(experiment.load(path), dict(overrides))
    given = values
  elif workdir:
    # All fields are there, those that its architecture does not read, too.
    given, values = {}, config_lib.to_dict(checkpoint_lib.load_config(workdir))
    experiment.override(given, overrides, Config)
  else:
    raise ConfigError('give --config=experiments/NAME.py or --workdir=FOLDER')
  experiment.override(values, overrides, Config)
  if workdir:
    values['workdir'] = workdir
  config = config_lib.from_dict(values)
  architectures.require_read(config.model, given.get('model', {}))
  setup.make_optimizer(config)  # refuses what it cannot make
  if path and not config.workdir:
    name, _ = os.path.splitext(os.path.basename(path.partition(':')[0]))
    config = dataclasses.replace(config, workdir=os.path.join('runs', name))
  needed = tokenizer_lib.vocab_size(config.data)
  if config.model.vocab_size < needed:
    raise ConfigError(
        f'model.vocab_size is {config.model.vocab_size}, but the tokenizer has'
        f' {needed} ids; add --config.model.vocab_size={needed}'
    )
  return config


def _of_file(
    values: dict[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what an experiment says of a run with these overrides.

  Where they name another architecture or optimizer than the file, what the file
  says of its own, and theirs do not read, is left out.
  """
  model, optimizer = values.get('model', {}), values.get('optimizer', {})
  name = overrides.get('model.architecture')
  if name and name != model.get('architecture', ModelConfig.architecture):
    model = architectures.only_read(name, model)
  name = overrides.get('optimizer.name')
  if name and name != optimizer.get('name', OptimizerConfig.name):
    kept = (k for k in optimizer if k not in OptimizerConfig.OWN)
    optimizer = {k: optimizer[k] for k in kept}
  return values | {'model': model, 'optimizer': optimizer}


def train(
    config: Config,
    *,
    checkpoint_step: int | None = None,
    progress: bool = True,
) -> loop.Result:
  """Trains the model of a configuration on its text.

  Args:
    config: the run; it goes on from what its workdir holds. With an empty
      workdir nothing is written.
    checkpoint_step: go on from this checkpoint instead of the latest.
    progress: show a bar with the time left, the loss and the speed.

  Returns:
    The state at the end, the history and why it ended.

  Raises:
    ConfigError, FloatingPointError: as `train.loop.train`.
  """
  model = factory.language_model(config.model)
  return loop.train(
      model,
      pipeline.train_batches(
          config.data, tile=architectures.chunk_of(config.model), **_processes()
      ),
      config,
      evaluate=lambda params: _heldout(config, model, params),
      checkpoint_step=checkpoint_step,
      progress=progress,
  )


def restore(
    config: Config, checkpoint_step: int | None = None
) -> tuple[Any, PyTree]:
  """Returns the model of a workdir and its trained parameters.

  Args:
    config: the run; all but its model may differ from what was trained.
    checkpoint_step: which checkpoint; None: the latest.

  Raises:
    ConfigError: there is none, it is damaged, or it is of another model.
  """
  checkpoint_lib.require_same(
      config, may_change=lambda field: not field.startswith('model.')
  )
  model = factory.language_model(config.model)
  mesh = sharding.make_mesh(config.mesh)
  shapes = state_lib.param_shapes(model, config.data.sequence_length, mesh)
  checkpoints = checkpoint_lib.Checkpoints(config)
  try:
    return model, checkpoints.restore_params(shapes, checkpoint_step)
  finally:
    checkpoints.close()


def evaluate(
    config: Config, checkpoint_step: int | None = None
) -> dict[str, float]:
  """Returns loss, bits per byte and their like of held-out text.

  Raises:
    ConfigError: as `restore`, or there is no text.
    FloatingPointError: one of them is not finite.
  """
  model, params = restore(config, checkpoint_step)
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    scores = _heldout(config, model, params)
  failures.require_finite(scores)
  return scores


def _heldout(config: Config, model: Any, params: PyTree) -> dict[str, float]:
  """Scores on held-out text, and bits per byte of each source of a mixture."""

  def measure(source: str | None) -> dict[str, float]:
    batches = pipeline.heldout_batches(
        config.data, config.train.eval_batches, source=source,
        tile=architectures.chunk_of(config.model), **_processes(),
    )
    return text.evaluate(model, params, batches)

  scores = measure(None)
  for source, _, _ in config.data.parts() if config.data.mixture else ():
    scores[f'bits_per_byte/{source}'] = measure(source)['bits_per_byte']
  return scores


def _processes() -> dict[str, int]:
  return {
      'process_index': jax.process_index(),
      'process_count': jax.process_count(),
  }


def session(config: Config, checkpoint_step: int | None = None) -> Session:
  """Returns a fresh memory of a trained model, to be read to and asked."""
  model, params = restore(config, checkpoint_step)
  return Session(model, params, tokenizer_lib.load_tokenizer(config.data))
