"""Optimizers side by side: one task, as many steps, one search for the rate.

The rows are optimizers, the columns what they train: the toy landscape of NL
Eq. 53, a ViT on images (§9.7), a language model on bytes. There is one learning
rate for all parameters, for which the updates of Muon, AdaMuon and M3 have
AdamW's root mean square of 0.2; only DGD, whose steps are gradients, leaves
AdamW's part at a rate of its own. Gradients are clipped by their global norm.
There is no weight decay.

The step is that of every training; the loop around it is not `train.loop`'s,
because here each single step is timed and its loss kept, and because one
compiled step serves all rates and seeds of an optimizer.
"""

from collections.abc import Mapping
import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax import config as config_lib
from hope_jax import optim, sharding
from hope_jax.config import Config, OptimizerConfig, StudyConfig
from hope_jax.config.build import require
from hope_jax.optim import factory, registry
from hope_jax.report import charts
from hope_jax.report import optimizers as report
from hope_jax.studies.problems import FREQUENCY, WAVE, Problem, problem_of
from hope_jax.studies.results import Result
from hope_jax.studies.task import Cell, Task
from hope_jax.studies.training import parameter_count
from hope_jax.train.state import TrainState
from hope_jax.train.step import make_train_step

_POINTS = 50  # of a learning curve that is kept
# Fields of `OptimizerConfig`: for Muon the root mean square of AdamW's updates,
# for AdamW the decays of optax. All else is an optimizer's own default.
FIELDS = {
    'adamw': {'b2': 0.999},
    'muon': {'options': {'consistent_rms': 0.2}},
    'adamuon': {'options': {'rms_over': 'leaf'}},
}


# What a study may say of the optimizers; the rest is each one's own.
READS = ('learning_rate', 'final_learning_rate', 'warmup_steps', 'clip_norm')


def _optimizer(row: str, config: OptimizerConfig) -> OptimizerConfig:
  """The optimizer of a row at a learning rate of 1, scheduled by `config`."""
  return OptimizerConfig(
      name=row,
      learning_rate=1.0,
      final_learning_rate=config.final_learning_rate,
      warmup_steps=config.warmup_steps,
      clip_norm=config.clip_norm,
      weight_decay=0.0,
      **FIELDS.get(row, {}),
  )


def _scale_by_rate(other_rate: float | None) -> optax.GradientTransformation:
  """Multiplies updates by a rate that is the state."""

  def init(params):
    del params
    return jnp.float32(0)

  def update(updates, state, params=None):
    del params
    rate, other = state, state if other_rate is None else other_rate
    scaled = jax.tree.map(
        lambda label, u: (rate if label == 'matrix' else other) * u,
        optim.matrix_labels(updates),
        updates,
    )
    return scaled, rate

  return optax.GradientTransformation(init, update)


class Trainer:
  """Trains a problem with one optimizer; compiled once for all runs."""

  def __init__(self, problem: Problem, row: str, config: Config):
    entry = registry.get(row)
    self._problem, self._steps = problem, config.train.steps
    self._tx = optax.chain(
        factory.make_optimizer(
            _optimizer(row, config.optimizer), self._steps
        ),
        _scale_by_rate(entry.other_rate),
    )
    dot_general = entry.dot_general() if entry.dot_general else None
    loss_fn = problem.make_loss_fn(dot_general)
    self._step = jax.jit(make_train_step(loss_fn, self._tx), donate_argnums=0)

  def _begin(self, rate: float, seed: int) -> TrainState:
    params = self._problem.init(seed)
    *inner, _ = jax.jit(self._tx.init)(params)
    state = *inner, jnp.float32(rate)
    return TrainState(jnp.int32(0), params, state, jax.random.key(seed))

  def run(self, rate: float, seed: int) -> dict[str, Any]:
    """Trains once; a loss that is no number ends the run."""
    problem, state = self._problem, self._begin(rate, seed)
    losses, trace, wall, cpu = [], [], [], []
    for batch in problem.batches(seed):
      if problem.trace:
        trace.append(problem.trace(state.params))
      clock = time.perf_counter(), time.process_time()
      state, metrics = self._step(state, batch)
      losses.append(float(metrics['loss']))
      wall.append(time.perf_counter() - clock[0])
      cpu.append(time.process_time() - clock[1])
      if not math.isfinite(losses[-1]):
        break
    last = losses[-max(self._steps // 10, 1) :]
    scores = {
        'steps': len(losses),
        'parameters': parameter_count(state.params),
        'train_loss': _finite(np.mean(last)),
        'curve': _curve(losses),
        # Medians: the first step compiles.
        'milliseconds': 1e3 * float(np.median(wall)),
        'cpu_milliseconds': 1e3 * float(np.median(cpu)),
    }
    finite = math.isfinite(losses[-1])
    found = problem.evaluate(state.params) if finite else {}
    scores['heldout'] = {name: _finite(x) for name, x in found.items()}
    if problem.trace:
      above = [i for i, x in enumerate(losses) if not x < report.CONVERGED]
      settled = above[-1] + 1 if above else 0
      scores['settled'] = settled if settled < self._steps else None
      scores['trace'] = [[round(x, 4) for x in point] for point in trace]
    return scores


def _finite(x: Any) -> float | None:
  return float(x) if math.isfinite(x) else None


def _curve(losses: list[float]) -> list[list[float | None]]:
  """[step, mean loss since the last point], about `_POINTS` of them."""
  size = max(len(losses) // _POINTS, 1)
  return [
      [i + size, _finite(np.mean(losses[i : i + size]))]
      for i in range(0, len(losses) - size + 1, size)
  ]


# The last one, and what it was made of: all cells of an optimizer come one
# after the other.
_kept: list[tuple[Any, Trainer]] = []


def _trainer(cell: Cell, config: Config, study: StudyConfig) -> Trainer:
  made_of = cell.row, cell.column, config, study.images, study.vit
  if not _kept or _kept[0][0] != made_of:
    problem = problem_of(cell.column, config, study)
    _kept[:] = [(made_of, Trainer(problem, cell.row, config))]
  return _kept[0][1]


def check(study: StudyConfig) -> None:
  """Refuses a study that sets what an optimizer brings itself."""
  for field in study.base.get('optimizer', {}):
    require(
        field in READS,
        f'base.optimizer.{field} is not read by this study, where each row is'
        f' an optimizer with options of its own; it reads {", ".join(READS)}',
    )


def run(config: Config, cell: Cell, study: StudyConfig) -> dict[str, Any]:
  """Trains with an optimizer at a learning rate.

  Args:
    config: steps, schedule, clipping, and of the column 'text' model and data.
    cell: its row is an optimizer, its column 'landscape', 'text' or a source of
      images.
    study: of images the model and the data.

  Returns:
    'train_loss' (of the last tenth), 'curve', 'heldout': 'loss' and others,
    empty after a loss that was no number; 'steps', 'parameters', and a step's
    'milliseconds' and 'cpu_milliseconds' (medians). Of the landscape also
    'trace', all points, and 'settled', the steps to the bottom.

  """
  # What rates and seeds have in common, so that they share a compiled step.
  common = dataclasses.replace(
      config,
      optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0),
      data=dataclasses.replace(config.data, seed=0),
      train=dataclasses.replace(config.train, seed=0),
  )
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    trainer = _trainer(cell, common, study)
    return trainer.run(config.optimizer.learning_rate, config.train.seed)


def _read(content: Mapping[str, Any]) -> list[Result]:
  """Returns the results of a file: a cell, or a table joined in one file."""
  if 'optimizers' not in content:
    return [dict(content)]
  config, steps = content['config'], content['config']['steps']
  task = config['task']
  common = {
      'column': config['images']['source'] if task == 'images' else task,
      'machine': content['machine'],
      'date': content['machine']['date'],
      'every_settings': {
          'model': config['model'],
          'optimizer': {
              'warmup_steps': round(config['warmup'] * steps),
              'clip_norm': config['clip_norm'],
          },
          'train': {'steps': steps, 'eval_batches': config['eval_batches']},
      },
      'every_data': {
          'counts': {}, 'lengths': {}, 'data_dir': '', 'language': '',
          'images': config['images'], 'vit': config['vit'],
      },
  }

  def result(row, seed, rate, scores):
    every = common['every_settings']
    own = {
        'optimizer': every['optimizer'] | {'learning_rate': rate},
        'train': every['train'] | {'seed': seed},
        'data': config['data'] | {'seed': seed},
    }
    return common | {
        'row': row, 'seed': seed, 'learning_rate': rate, 'scores': scores,
        'every_settings': every | own,
    }

  results = []
  for row, found in content['optimizers'].items():
    results += [
        result(row, 0, float(rate), {'heldout': {'loss': loss}})
        for rate, loss in found['trials'].items()
    ]
    results += [
        result(
            row, scores['seed'], scores['learning_rate'],
            scores | {'parameters': content['parameters']},
        )
        for scores in found['runs']
    ]
  return results


def render(
    study: StudyConfig, results: list[Result], figures: list[str]
) -> list[str]:
  """Returns setting, table and verdict, and what is drawn below them."""
  parts = []
  for column, found in _by_column(results).items():
    parts += [
        report.setting(study.trials, results),
        report.table(column, found),
        report.verdict(column, found),
    ]
  return [*parts, *figures]


def figures(results: list[Result]) -> dict[str, str]:
  """The paths over the landscape; the losses while training."""
  drawn = {}
  for column, found in _by_column(results).items():
    draw = _paths if column == 'landscape' else report.curves
    drawn[column] = draw(found)
  return drawn


def _by_column(
    results: list[Result],
) -> dict[str, dict[str, list[Result]]]:
  """Column -> row -> results of the seeds."""
  found = {}
  for result in results:
    rows = found.setdefault(result['column'], {})
    rows.setdefault(result['row'], []).append(result)
  return found


def _paths(found: Mapping[str, list[Result]]) -> str:
  """One panel an optimizer: the path of its first run over the valley."""
  r = np.linspace(-4, 1.5, 300)
  floor = list(zip(r, r + WAVE * np.sin(FREQUENCY * r)))
  panels = [
      (
          report.name_of(name),
          [
              charts.Line('', floor),
              charts.Line('', runs[0]['scores']['trace'], colour=i),
          ],
      )
      for i, (name, runs) in enumerate(found.items())
  ]
  return charts.panels(
      'Paths over the landscape', panels, x=charts.Axis('r', (-4, 1.5)),
      y=charts.Axis('theta; grey: the floor of the valley', (-4.5, 2.5)),
  )


def _data(study: StudyConfig) -> dict[str, Any]:
  return {
      'images': config_lib.to_dict(study.images),
      'vit': config_lib.to_dict(study.vit),
  }


TASK = Task(
    run,
    render,
    figures,
    check=check,
    columns=('landscape', 'text', 'digits', 'tfds'),
    rows=registry.OPTIMIZERS,
    loss=report.heldout_loss,
    first_rate=lambda config, row: registry.get(row).rate,
    data=_data,
    read=_read,
)
