"""The quickstart: trains, measures, and tells what came of it.

The run is that of `main train`; then come held-out bits per byte beside those
of n-grams and compressors, the second reading that shows the memory at work,
and a sample. `workdir/report.json` holds the results, `workdir/report.html` is
the same to look at, and the text of it is printed.

The learning rate follows `train.steps`, not the clock, so that a run is the
same on every machine: choose as many steps as fit. `train.max_seconds` is the
safety net, and the report says so when it was needed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from hope_jax import config as config_lib
from hope_jax import console, sharding
from hope_jax import run as run_lib
from hope_jax.config import Config, ConfigError, architectures
from hope_jax.data import pipeline
from hope_jax.data import tokenizer as tokenizer_lib
from hope_jax.evals import second_reading, text, text_baselines
from hope_jax.infer import session as session_lib
from hope_jax.models import factory as models
from hope_jax.optim import frequency
from hope_jax.report import page
from hope_jax.report import text as report
from hope_jax.studies import machine
from hope_jax.studies.results import write_json, write_text
from hope_jax.studies.training import parameter_count
from hope_jax.train import checkpoint as checkpoint_lib
from hope_jax.train import failures, setup
from hope_jax.types import PyTree

# What the evaluation of the held-out text may take; a model that needs longer
# is measured on a sample of it.
_EVALUATION_SECONDS = 15.0
_PROMPT = 'def '
_SAMPLE_TOKENS = 400
_TEMPERATURE = 0.7


def run(
    config: Config, *, checkpoint_step: int | None = None
) -> dict[str, Any]:
  """Trains a model, or goes on with it, and reports.

  Args:
    config: the run; its workdir is not empty.
    checkpoint_step: go on from this checkpoint instead of the latest.

  Returns:
    What `report.text` describes. After Ctrl-C or SIGTERM there is no report;
    then 'training' alone, with what is known.

  Raises:
    ConfigError: as `train.loop.train`; there are several processes; or the
      report cannot be written.
    FloatingPointError: the loss is not finite.
  """
  if jax.process_count() > 1:
    raise ConfigError('quickstart runs in one process; use train and eval')
  clock = time.monotonic()
  from_step = _first_step(config, checkpoint_step)
  with concurrent.futures.ThreadPoolExecutor(1) as background:
    # Counting and compressing take a few seconds; so does compiling.
    baselines = background.submit(_baselines, config)
    result = run_lib.train(config, checkpoint_step=checkpoint_step)
    baselines = baselines.result()
  step, params = int(result.state.step), result.state.params
  history = _measured(result.history)
  logged = [r for r in history if r['split'] == 'train']
  facts = {
      'architecture': config.model.architecture,
      'parameters': parameter_count(params),
      'from_step': from_step,
      'step': step,
      'steps': config.train.steps,
      'stopped': result.stopped,
      'bytes': step * _bytes_per_step(logged),
  }
  if result.stopped.startswith('SIG'):
    return {'training': facts}

  console.say('measuring ...')
  heldout = pipeline.heldout_text(config.data)
  seconds = {'training': time.monotonic() - clock}
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    with _timed(seconds, 'held-out text'):
      measured = _evaluate(config, params)
    with _timed(seconds, 'second reading'):
      reading = _second_reading(config, params, heldout)
    with _timed(seconds, 'sample'):
      sample = _sample(config, params)
  seconds['total'] = time.monotonic() - clock
  results = {
      'heldout': {
          'bits_per_byte': measured['bits_per_byte'],
          'bytes': measured['bytes'],
          'of_bytes': len(heldout),
      },
      'baselines': baselines,
      'curve': _curve(history, facts['bytes'] / max(step, 1)),
      'second_reading': reading,
      'sample': sample,
      'training': facts,
      'levels': _levels(config, result.state.opt_state),
      'stability': {
          name: logged[-1][name]
          for name in report.STABILITY
          if logged and name in logged[-1]
      },
      'machine': machine.describe(),
      'config': config_lib.to_dict(config),
      'seconds': seconds,
  }
  path = _write(config.workdir, results)
  console.show(f'{report.as_text(results)}\n\nWith pictures: {path.as_uri()}')
  return results


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  start = time.monotonic()
  yield
  seconds[name] = time.monotonic() - start


def _first_step(config: Config, checkpoint_step: int | None) -> int:
  """Returns the step that training will go on from."""
  if checkpoint_step is not None:
    return checkpoint_step
  return max(checkpoint_lib.Checkpoints(config).steps(), default=0)


def _baselines(config: Config) -> dict[str, float]:
  heldout = pipeline.heldout_text(config.data)
  return text_baselines.baselines(pipeline.train_text(config.data), heldout)


def _evaluate(config: Config, params: PyTree) -> dict[str, float]:
  batches = pipeline.heldout_batches(
      config.data, tile=architectures.chunk_of(config.model)
  )
  scores = text.evaluate(
      models.language_model(config.model),
      params,
      _for_seconds(batches, _EVALUATION_SECONDS),
  )
  failures.require_finite(scores)
  return scores


def _for_seconds(items: Iterable, seconds: float) -> Iterator:
  """Yields items until time is up; the first, which compiles, is free."""
  start = None
  for item in items:
    if start is not None and time.monotonic() - start > seconds:
      return
    yield item
    start = start or time.monotonic()


def _second_reading(
    config: Config, params: PyTree, heldout: bytes
) -> dict[str, Any] | None:
  """Returns the second reading with memory on and off, where that applies."""
  tokenizer = tokenizer_lib.load_tokenizer(config.data)
  encoded = tokenizer.encode(heldout)
  passages = second_reading.choose(
      np.asarray(encoded.ids), np.asarray(encoded.num_bytes)
  )
  if passages is None:
    return None
  configs = {'on': config.model, 'off': None}
  # Only these have memories that are written by a rule of their own.
  if architectures.reads(config.model.architecture, 'titans.eta_max'):
    configs['off'] = second_reading.memory_off(config.model)
  return {
      name: model
      and second_reading.second_reading(
          models.language_model(model), params, passages, bos=tokenizer.bos
      )
      for name, model in configs.items()
  }


def _sample(config: Config, params: PyTree) -> dict[str, Any]:
  session = session_lib.Session(
      models.language_model(config.model),
      params,
      tokenizer_lib.load_tokenizer(config.data),
  )
  session.feed(_PROMPT)
  text = session.generate(_SAMPLE_TOKENS, temperature=_TEMPERATURE)
  return {'prompt': _PROMPT, 'text': text + session.flush()}


def _measured(
    history: Sequence[Mapping[str, Any]],
) -> list[Mapping[str, Any]]:
  """Leaves out skipped steps, and records of other hands, without numbers."""
  wanted = {
      'train': ('bits_per_byte', 'loss', 'tokens'),
      'heldout': ('bits_per_byte',),
  }
  return [
      record for record in history
      if record['split'] in wanted
      and all(
          math.isfinite(record.get(name, math.inf))
          for name in wanted[record['split']]
      )
  ]


def _bytes_per_step(logged: Sequence[Mapping[str, float]]) -> float:
  """Returns the mean text of a batch: padding is no text."""
  sizes = [
      r['tokens'] * r['loss'] / (r['bits_per_byte'] * math.log(2))
      for r in logged
      if r['bits_per_byte']
  ]
  return float(np.mean(sizes)) if sizes else 0.0


def _curve(
    history: Sequence[Mapping[str, Any]], bytes_per_step: float
) -> list[dict[str, Any]]:
  return [
      {
          'split': record['split'],
          'step': record['step'],
          'bytes': record['step'] * bytes_per_step,
          'bits_per_byte': record['bits_per_byte'],
      }
      for record in history
  ]


def _levels(config: Config, opt_state: PyTree) -> list[dict[str, Any]]:
  """Returns name, period and updates of each level of the outer optimizer."""
  periods = {'base': 1}
  for i, period in enumerate(setup.level_periods(config)):
    periods[f'level_{i}'] = period
  counts = frequency.update_counts(opt_state)
  return [
      {'name': name, 'period': period, 'updates': int(counts[name])}
      for name, period in periods.items()
      if name in counts
  ]


def _write(workdir: str, results: dict[str, Any]) -> pathlib.Path:
  """Writes report.json and report.html; returns the path of the page."""
  path = pathlib.Path(workdir, 'report.html').resolve()
  try:
    write_json(str(path.with_suffix('.json')), results)
    write_text(str(path), page.as_html(results))
  except OSError as error:
    raise ConfigError(
        f'the report could not be written to {str(path)!r}: {error.strerror}'
    ) from error
  return path
