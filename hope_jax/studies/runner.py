"""A table of an experiment: rows x columns x seeds, a JSON file a cell.

  python -m hope_jax.main study --config=experiments/formal_languages.py
  python -m hope_jax.main study --config=experiments/formal_languages.py:tiny
  python -m hope_jax.main study --config=... --render

Trains and measures each cell that has no result yet. Stopped at any moment, the
same command goes on: a cell is a file, written whole or not at all, and an
interrupted cell starts over. With `trials`, each row first looks for its
learning rate, with the seed 0. Then, or at once with --render, the README
beside the folder of results is written anew between its markers, if it has any.
Fields of `StudyConfig` and, under `base`, of `Config`, can be changed:

  --config.data_dir=DIR            the published files of a formal language
  --config.language=FILE.py:NAME   a language of your own; both into runs/, or
                                   where --config.results says
  --config.rows_run=Hope,LSTM --config.columns_run=parity --config.seeds=0,1
  --config.base.train.steps=100 --config.results=runs/mine
"""

from collections.abc import Callable, Mapping, Sequence
import math
import os
import time
from typing import Any

from hope_jax import console, interrupts
from hope_jax.config import StudyConfig
from hope_jax.report import markdown
from hope_jax.studies import grid, machine
from hope_jax.studies.grid import TASKS
from hope_jax.studies.results import (
  Result,
  expected,
  write_json,
  write_text,
)
from hope_jax.studies.task import Cell
from hope_jax.train import checkpoint

TRIAL_SEED = 0  # of the runs that look for a learning rate


def run(study: StudyConfig) -> None:
  """Runs the cells that have no result.

  Raises:
    ConfigError: a cell cannot be run, or another program runs some of them.
    FloatingPointError: cells have diverged; after all others have run.
    KeyboardInterrupt: it was stopped; the same call goes on.
  """
  TASKS[study.task].check(study)
  lock = checkpoint.lock_workdir(study.results)
  try:
    _run(study)
  finally:
    lock.release()


def _run(study: StudyConfig) -> None:
  runner = _Runner(study)
  for cell in grid.cells(study):
    if study.trials:
      rate = runner.best_rate(cell.row, cell.column)
      cell = cell._replace(learning_rate=rate)
    try:
      runner.scores(cell)
    except FloatingPointError as error:
      runner.diverged.append(
          f'{cell.row}, {cell.column}, seed {cell.seed}: {error}'
      )
  if runner.diverged:
    raise FloatingPointError('; '.join(runner.diverged))


class _Runner:
  """Makes each cell once."""

  def __init__(self, study: StudyConfig):
    self.diverged: list[str] = []
    self._study = study
    self._task = TASKS[study.task]
    self._found = grid.read(study)
    self._best: dict[tuple[str, str], float] = {}
    cells = list(grid.cells(study))
    searches = len({(cell.row, cell.column) for cell in cells})
    self._number, self._most = 0, len(cells) + searches * study.trials

  def best_rate(self, row: str, column: str) -> float:
    """Returns the learning rate of the lowest loss of all trials."""
    if (row, column) not in self._best:
      cell = Cell(row, column, TRIAL_SEED)
      first = self._task.first_rate(grid.config_of(self._study, cell), row)

      def measure(rate):
        try:
          scores = self.scores(cell._replace(learning_rate=rate))
        except FloatingPointError:
          return math.inf
        return self._task.loss(scores)

      tried = search(measure, first, self._study.trials)
      self._best[row, column] = best_of(tried)
    return self._best[row, column]

  def scores(self, cell: Cell) -> dict[str, Any]:
    """Returns the scores of a cell, run now if there is no result of it."""
    self._number += 1
    if cell in self._found:
      with expected(grid.path(self._study, cell)):
        grid.require_same(self._study, cell, self._found[cell])
        return self._found[cell]['scores']
    asked = grid.asked(self._study, cell)
    rate = cell.learning_rate
    console.say(
        f'cell {self._number} of {self._most}: {cell.row}, {cell.column},'
        f' seed {cell.seed}'
        + ('' if rate is None else f', learning rate {rate:g}')
    )
    wall, cpu = time.monotonic(), time.process_time()
    config = grid.config_of(self._study, cell)
    scores = self._task.run(config, cell, self._study)
    result = {
        'row': cell.row,
        'column': cell.column,
        'seed': cell.seed,
        **({} if rate is None else {'learning_rate': rate}),
        'scores': scores,
        'seconds': round(time.monotonic() - wall, 1),
        'cpu_seconds': round(time.process_time() - cpu, 1),
        **asked,
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
        'machine': machine.describe(),
    }
    write_json(grid.path(self._study, cell), result)
    self._found[cell] = result
    return scores


def search(
    measure: Callable[[float], float], first: float, trials: int
) -> dict[float, float]:
  """Looks for the rate of the lowest loss, in factors of 3, then of sqrt(3).

  Args:
    measure: rate -> loss.
    first: rate to start from.
    trials: calls of `measure`, at most.

  Returns:
    Rate -> loss of all that were tried.
  """
  tried = {}  # k -> loss at first * 3 ** (k / 2)
  rate = lambda k: float(f'{first * 3 ** (k / 2):.3g}')
  while len(tried) < trials:
    # Down first: too high a rate diverges and says little.
    best = min(tried, key=lambda k: (tried[k], k), default=0)
    around = [best, best - 2, best + 2, best - 1, best + 1]
    fresh = [k for k in around if k not in tried]
    if not fresh:
      break
    tried[fresh[0]] = measure(rate(fresh[0]))
  return {rate(k): loss for k, loss in tried.items()}


def best_of(tried: Mapping[float, float]) -> float:
  """Returns the rate of the lowest loss; of equal losses, the lower rate."""
  return min(tried, key=lambda rate: (tried[rate], rate))


def read(study: StudyConfig) -> list[Result]:
  """Returns what the tables are made of: with a search, the best rate's runs.

  Each has the 'trials' of its row and column then: rate -> loss.
  """
  found, loss = grid.read(study), TASKS[study.task].loss
  if not study.trials:
    return list(found.values())
  trials = {}
  for cell, result in found.items():
    if cell.seed == TRIAL_SEED:
      tried = trials.setdefault((cell.row, cell.column), {})
      tried[cell.learning_rate] = loss(result['scores'])
  shown = []
  for cell, result in found.items():
    tried = trials.get((cell.row, cell.column))
    if not tried or cell.seed == TRIAL_SEED:
      continue
    if cell.learning_rate == best_of(tried):
      shown.append(result | {'trials': tried})
  return shown


def markers(study: StudyConfig) -> tuple[str, str]:
  """Returns what the results stand between in a README."""
  begin, end = (f'<!-- {study.section}: {x} -->' for x in ('begin', 'end'))
  return begin, end


def render(study: StudyConfig) -> str:
  """Returns what belongs between the markers: tables, figures, provenance."""
  results = read(study)
  if not results:
    return 'No results yet.'
  task, folder = TASKS[study.task], os.path.basename(study.results)
  with expected(study.results):
    figures = [
        f'![{name}]({folder}/{name}.svg)' for name in task.figures(results)
    ]
    return '\n\n'.join(task.render(study, results, figures))


def write_readme(study: StudyConfig) -> None:
  """Draws the figures, and puts the results into the README if it is ours."""
  with expected(study.results):
    figures = TASKS[study.task].figures(read(study))
  for name, svg in figures.items():
    write_text(os.path.join(study.results, f'{name}.svg'), svg)
  if os.path.isfile(study.readme):
    with open(study.readme, encoding='utf-8') as file:
      text = file.read()
    new = markdown.replaced(text, *markers(study), render(study))
    if new != text:
      write_text(study.readme, new)


def command(
    experiment: str,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    workdir: str | None = None,
    render: bool = False,
) -> int:
  """Runs a study, writes its README and prints its tables.

  Args:
    experiment: path of an experiment file; FILE:ARGUMENT.
    overrides: dotted field names and the texts of their values.
    workdir: the folder of the results; None: what the experiment says.
    render: of the results there are, without a run.

  Returns:
    The exit code: 0 done; that of a signal, stopped; the same command goes on.

  Raises:
    ConfigError: something in the experiment or a cell is wrong.
    FloatingPointError: cells have diverged; all others have run.
  """
  study = grid.load(experiment, overrides, results=workdir or '')
  try:
    if not render:
      run(study)
  except KeyboardInterrupt as stopped:
    _show(study)
    console.say('stopped; the same command goes on')
    return interrupts.exit_code(*(stopped.args or ('SIGINT',)))
  except FloatingPointError:
    _show(study)
    raise
  _show(study)
  return 0


def _show(study: StudyConfig) -> None:
  write_readme(study)
  console.show(render(study))
