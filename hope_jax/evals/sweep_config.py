"""What an experiment of many small runs is: rows x columns x seeds."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
from typing import Any, NamedTuple

from hope_jax import config as config_lib
from hope_jax.config import Config, ConfigError, experiment
from hope_jax.evals import ablation, formal_languages, recall
from hope_jax.evals.results import Entries, Result, slug
from hope_jax.tasks import formal_languages as languages
from hope_jax.tasks import mad, needles


class Task(NamedTuple):
  """What a kind of experiment brings to the table."""

  # (config of the cell, column, sweep) -> scores, JSON values by name; None: it
  # was interrupted.
  run: Callable[[Config, str, 'SweepConfig'], dict[str, Any] | None]
  # Results of the experiment -> title of a table -> (row, column) -> text; its
  # columns are those of the sweep, or all others in the order of the entries.
  tables: Callable[[list[Result]], dict[str, Entries]]
  # Results -> name of a figure -> SVG.
  figures: Callable[[list[Result]], dict[str, str]]
  # What `SweepConfig.counts` and `lengths` may name, and a column be; '#' is a
  # number, '*' is anything.
  counts: Sequence[str] = ()
  lengths: Sequence[str] = ()
  columns: Sequence[str] = ('*',)


TASKS = {
    'formal_languages': Task(
        formal_languages.run, formal_languages.tables, formal_languages.figures,
        counts=tuple(languages.COUNTS), lengths=tuple(languages.LENGTHS),
        columns=tuple(languages.LANGUAGES),
    ),
    'ablation': Task(ablation.run, ablation.tables, ablation.figures),
    'mad': Task(
        recall.run_mad, recall.tables, lambda results: {},
        counts=recall.SPLITS, columns=tuple(mad.TASKS),
    ),
    'mqar': Task(
        recall.run_mqar, recall.tables, recall.mqar_figures,
        counts=recall.SPLITS, lengths=('length', 'vocab'), columns=('#',),
    ),
    'needles': Task(
        recall.run_needles, recall.needle_tables, recall.needle_figures,
        counts=recall.SPLITS, lengths=('train', 'test', 'depths'),
        columns=tuple(needles.TASKS),
    ),
}


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """An experiment of many small runs."""

  task: str
  # Where the cells go; the README whose tables are made of them is beside it.
  results: str
  # The rows in order: 'name', and fields of `Config` on top of `base` and, for
  # a column that wants others, of `by_column`.
  rows: tuple[dict, ...]
  base: dict = dataclasses.field(default_factory=dict)
  by_column: dict = dataclasses.field(default_factory=dict)
  columns: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0, 1, 2)
  # The rows and columns to run; empty: all. All that have results are shown.
  rows_run: tuple[str, ...] = ()
  columns_run: tuple[str, ...] = ()
  # Examples of each split, and lengths; what is absent is the task's own.
  counts: dict = dataclasses.field(default_factory=dict)
  lengths: dict = dataclasses.field(default_factory=dict)
  # Formal languages from elsewhere; they take the place of the columns.
  data_dir: str = ''
  language: str = ''

  def __post_init__(self):
    if self.task not in TASKS:
      raise ConfigError(
          f'SweepConfig.task must be one of {", ".join(TASKS)};'
          f' got {self.task!r}'
      )
    if not self.rows or any('name' not in row for row in self.rows):
      raise ConfigError(f"SweepConfig.rows need a 'name' each; got {self.rows}")
    names = [row['name'] for row in self.rows]
    for field, given in (('rows', names), ('columns', self.shown_columns)):
      if len({slug(name) for name in given}) < len(given):
        raise ConfigError(
            f'SweepConfig.{field} share the names of their files; got'
            f' {", ".join(given)}'
        )
    task, elsewhere = TASKS[self.task], self.data_dir or self.language
    for field, given, known in (
        ('counts', self.counts, task.counts),
        ('lengths', self.lengths, task.lengths),
        ('columns', () if elsewhere else self.columns, task.columns),
        ('by_column', self.by_column, task.columns),
    ):
      for name in given:
        _one_of(field, name, known)
    for field, wanted, known in (
        ('rows_run', self.rows_run, names),
        ('columns_run', self.columns_run, self.shown_columns),
    ):
      for name in wanted:
        _one_of(field, name, known)
    if self.data_dir and self.language:
      raise ConfigError('SweepConfig: give data_dir or language, not both')

  @property
  def fields(self) -> dict[str, dict]:
    """Row -> its fields of `Config`."""
    return {
        row['name']: {k: v for k, v in row.items() if k != 'name'}
        for row in self.rows
    }

  @property
  def shown_columns(self) -> tuple[str, ...]:
    """The columns, or the name of the language from elsewhere."""
    if self.data_dir:
      return (os.path.basename(os.path.abspath(self.data_dir)),)
    if self.language:
      return (self.language.partition(':')[2] or self.language,)
    return self.columns

  @property
  def readme(self) -> str:
    """The README that the results are rendered into."""
    return os.path.join(os.path.dirname(self.results), 'README.md')


def _one_of(field: str, name: str, known: Sequence[str]) -> None:
  number = '#' in known and name.isdigit() and int(name) > 0
  if not (number or name in known or '*' in known):
    wanted = ', '.join(known).replace('#', 'a number') or 'nothing'
    raise ConfigError(f'SweepConfig.{field}: {name!r} is none of {wanted}')


class Cell(NamedTuple):
  """One number of the table, for one seed."""

  row: str
  column: str
  seed: int

  def path(self, sweep: SweepConfig) -> str:
    """Where its result is kept."""
    name = slug(f'{self.row} {self.column} {self.seed}')
    return os.path.join(sweep.results, f'{name}.json')


def cells(sweep: SweepConfig) -> Iterator[Cell]:
  """Yields all cells, column by column: related numbers appear together."""
  for column in sweep.columns_run or sweep.shown_columns:
    for row in sweep.rows_run or sweep.fields:
      for seed in sweep.seeds:
        yield Cell(row, column, seed)


def settings(sweep: SweepConfig, cell: Cell) -> dict[str, Any]:
  """Returns the fields of `Config` that the experiment sets for a cell."""
  parts = [
      sweep.base, sweep.by_column.get(cell.column, {}), sweep.fields[cell.row],
      {'train': {'seed': cell.seed}, 'data': {'seed': cell.seed}},
  ]
  merged = {}
  for part in parts:
    merged = _merge(merged, part)
  return merged


def _merge(old: Any, new: Any) -> Any:
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return new
  return old | {k: _merge(old.get(k, {}), v) for k, v in new.items()}


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> SweepConfig:
  """Builds a sweep from an experiment file.

  Args:
    path: FILE, or FILE:ARGUMENT.
    overrides: dotted field names and the texts of their values. A language from
      elsewhere has results of its own, in runs/, unless they say where.

  Raises:
    ConfigError: something in them is wrong; for `base` and rows, too.
  """
  values = experiment.load(path)
  experiment.override(values, overrides, SweepConfig)
  sweep = config_lib.from_dict(values, SweepConfig)
  elsewhere = sweep.data_dir or sweep.language
  if elsewhere and 'results' not in dict(overrides):
    # Not among the experiment's own.
    folder = f'runs/{slug(elsewhere) or "here"}'
    sweep = dataclasses.replace(sweep, results=folder)
  for cell in cells(sweep):
    config_lib.from_dict(settings(sweep, cell))
  return sweep
