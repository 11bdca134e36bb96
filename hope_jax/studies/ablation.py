"""Trains a model on text and measures held-out perplexity (NL Table 6)."""

import dataclasses
import functools
import math
import statistics
from typing import Any

from hope_jax import run as run_lib
from hope_jax.config import Config, ConfigError, StudyConfig
from hope_jax.studies import tables
from hope_jax.studies.results import Entries, Result, by_cell
from hope_jax.studies.task import Cell, Task


def run(
    config: Config, cell: Cell, study: StudyConfig
) -> dict[str, Any] | None:
  """Trains for `train.steps` and measures `train.eval_batches` held out.

  The held-out text is the same for every row and seed.

  Args:
    config: the run.
    cell: its column is the text source, as of `data.source`.
    study: not needed.

  Returns:
    'loss' (nats a token), 'perplexity' (a token), 'bits_per_byte', 'steps',
    'tokens_per_second' (median). None: interrupted.

  Raises:
    ConfigError: `train.max_seconds` ended the run.
  """
  del study
  config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, source=cell.column)
  )
  trained = run_lib.train(config)
  if trained.stopped == 'time':
    raise ConfigError(
        'an ablation compares runs of equal length, and train.max_seconds='
        f'{config.train.max_seconds:g} ended one at step'
        f' {int(trained.state.step)} of {config.train.steps}'
    )
  if trained.stopped != 'done':
    return None
  last = [r for r in trained.history if r['split'] == 'heldout'][-1]
  speeds = [
      r['tokens_per_second'] for r in trained.history if r['split'] == 'train'
  ]
  return {
      'loss': last['loss'],
      'perplexity': math.exp(last['loss']),
      'bits_per_byte': last['bits_per_byte'],
      'steps': int(trained.state.step),
      'tokens_per_second': round(statistics.median(speeds)),
  }


def perplexities(results: list[Result]) -> dict[str, Entries]:
  """Perplexity with its spread over seeds."""

  def text(found):
    values = [r['scores']['perplexity'] for r in found]
    mean = f'{statistics.fmean(values):.3f}'
    if len(values) > 1:
      mean += f' ± {statistics.stdev(values):.3f}'
    return f'{mean} ({len(values)})'

  return {
      'Held-out perplexity of a token ± standard deviation over seeds (their'
      ' number)': {key: text(found) for key, found in by_cell(results).items()}
  }


TASK = Task(run, functools.partial(tables.render, perplexities))
