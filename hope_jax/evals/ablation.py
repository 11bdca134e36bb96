"""Trains a model on text and measures held-out perplexity (Table 6)."""

import dataclasses
import math
import statistics
from typing import Any

from hope_jax.config import Config, ConfigError
from hope_jax.data import pipeline
from hope_jax.evals import language
from hope_jax.evals.results import Entries, Result, by_cell
from hope_jax.models.factory import language_model
from hope_jax.train import loop


def run(config: Config, column: str, sweep) -> dict[str, Any] | None:
  """Trains for `train.steps` and measures `train.eval_batches` held out.

  The held-out text is the same for every row and seed.

  Args:
    config: the run.
    column: the text source, as of `data.source`.
    sweep: the `SweepConfig`; not needed.

  Returns:
    'loss' (nats a token), 'perplexity' (a token), 'bits_per_byte', 'steps',
    'tokens_per_second' (median). None: interrupted.

  Raises:
    ConfigError: `train.max_seconds` ended the run.
  """
  del sweep
  config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, source=column)
  )
  model = language_model(config.model)

  def evaluate(params):
    batches = pipeline.heldout_batches(config.data, config.train.eval_batches)
    return language.evaluate(model, params, batches)

  trained = loop.train(
      model, pipeline.train_batches(config.data), config, evaluate=evaluate
  )
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


def tables(results: list[Result]) -> dict[str, Entries]:
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


def figures(results: list[Result]) -> dict[str, str]:
  """None: the table says it."""
  del results
  return {}
