"""Trains a model on text and measures what held-out text costs (NL Table 6)."""

import dataclasses
import functools
import statistics
import typing
from typing import Any

import numpy as np

from hope_jax import interrupts
from hope_jax import run as run_lib
from hope_jax.config import Config, ConfigError, DataConfig, StudyConfig
from hope_jax.studies import tables
from hope_jax.studies.results import Entries, Result, by_cell
from hope_jax.studies.task import Cell, Task
from hope_jax.studies.training import parameter_count
from hope_jax.train import failures

_SOURCES = typing.get_args(typing.get_type_hints(DataConfig)['source'])


def run(config: Config, cell: Cell, study: StudyConfig) -> dict[str, Any]:
  """Trains for `train.steps` and measures `train.eval_batches` held out.

  The held-out text is the same for every row and seed.

  Args:
    config: the run.
    cell: its column is the text source, as of `data.source`, or the name of a
      text whose fields of `data` the study has for that column.
    study: its `by_column` has them.

  Returns:
    'loss' (nats a token), 'perplexity' (a token), 'bits_per_byte', 'steps',
    'parameters', 'tokens_per_second' (median).

  Raises:
    ConfigError: the column is no source and has no fields, or
      `train.max_seconds` ended the run.
    FloatingPointError: the held-out loss is no number.
    Stopped: by a signal.
  """
  if cell.column in _SOURCES:
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, source=cell.column)
    )
  elif 'source' not in study.by_column.get(cell.column, {}).get('data', {}):
    raise ConfigError(
        f'column {cell.column!r} is none of {", ".join(_SOURCES)}, and'
        ' by_column says no data.source for it'
    )
  trained = run_lib.train(config)
  if trained.stopped == 'time':
    raise ConfigError(
        'a table of texts compares runs of equal length, and train.max_seconds='
        f'{config.train.max_seconds:g} ended one at step'
        f' {int(trained.state.step)} of {config.train.steps}'
    )
  if trained.stopped != 'done':
    raise interrupts.Stopped(trained.stopped)
  last = [r for r in trained.history if r['split'] == 'heldout'][-1]
  failures.require_finite({'loss': last['loss']})
  speeds = [
      r['tokens_per_second'] for r in trained.history if r['split'] == 'train'
  ]
  return {
      'loss': last['loss'],
      'perplexity': float(np.exp(last['loss'])),
      'bits_per_byte': last['bits_per_byte'],
      'steps': int(trained.state.step),
      'parameters': parameter_count(trained.state.params),
      'tokens_per_second': round(statistics.median(speeds)),
  }


def grids(results: list[Result]) -> dict[str, Entries]:
  """Perplexity and bits per byte with their spread over seeds, and the cost."""
  cells = by_cell(results)

  def spread(name):
    def text(found):
      values = [r['scores'][name] for r in found]
      mean = f'{statistics.fmean(values):.3f}'
      if len(values) > 1:
        mean += f' ± {statistics.stdev(values):.3f}'
      return f'{mean} ({len(values)})'

    return {key: text(found) for key, found in cells.items()}

  # Results of before they were counted have none.
  sizes = {
      key: f'{found[0]["scores"]["parameters"]:,}'
      for key, found in cells.items() if 'parameters' in found[0]['scores']
  }
  speeds = {
      key: f'{max(r["scores"]["tokens_per_second"] for r in found):,}'
      for key, found in cells.items()
  }
  return {
      'Held-out perplexity of a token ± standard deviation over seeds (their'
      ' number)': spread('perplexity'),
      'Held-out bits per byte, the same': spread('bits_per_byte'),
      **({'Parameters': sizes} if sizes else {}),
      'Tokens a second of training, in the fastest run': speeds,
  }


TASK = Task(run, functools.partial(tables.render, grids))
