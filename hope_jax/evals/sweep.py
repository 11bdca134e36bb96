"""A table of an experiment: rows x columns x seeds, one JSON a cell.

  python -m hope_jax.evals.sweep --config=experiments/formal_languages.py
  python -m hope_jax.evals.sweep --config=experiments/formal_languages.py:tiny
  python -m hope_jax.evals.sweep --config=... --render

Trains and measures each cell that has no result yet. Stopped at any moment, the
same command goes on: a cell is a file, written whole or not at all, and an
interrupted cell starts over. Then, or at once with --render, the README beside
the folder of results is written anew between its markers, if it has any. Fields
of `SweepConfig` and, under `base`, of `Config`, can be changed:

  --config.data_dir=DIR            the published files of a formal language
  --config.language=FILE.py:NAME   a language of your own; both into runs/
  --config.rows_run=Hope,LSTM --config.columns_run=parity --config.seeds=0,1
  --config.base.train.steps=100 --config.results=runs/mine
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from typing import Any, NamedTuple

from hope_jax import config as config_lib
from hope_jax import experiment
from hope_jax.config import Config, ConfigError
from hope_jax.evals import ablation, formal_languages, machine, recall

Result = dict[str, Any]


class Task(NamedTuple):
  """What a kind of experiment brings to the table."""

  # (config of the cell, column, sweep) -> scores, JSON values by name; None: it
  # was interrupted.
  run: Callable[[Config, str, 'SweepConfig'], dict[str, Any] | None]
  # Results of the experiment -> title of a table -> (row, column) -> text; its
  # columns are those of the sweep, or all others in the order of the entries.
  tables: Callable[[list[Result]], dict[str, dict[tuple[str, str], str]]]
  # Results -> name of a figure -> SVG.
  figures: Callable[[list[Result]], dict[str, str]]


TASKS = {
    'formal_languages': Task(
        formal_languages.run, formal_languages.tables, formal_languages.figures
    ),
    'ablation': Task(ablation.run, ablation.tables, ablation.figures),
    'mad': Task(recall.run_mad, recall.tables, lambda results: {}),
    'mqar': Task(recall.run_mqar, recall.tables, recall.mqar_figures),
    'needles': Task(
        recall.run_needles, recall.needle_tables, recall.needle_figures
    ),
}


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """An experiment of many small runs."""

  task: str
  # Where the cells go; the README whose tables are made of them is beside it.
  results: str
  # The rows in order: 'name', and fields of `Config` on top of `base`.
  rows: tuple[dict, ...]
  base: dict = dataclasses.field(default_factory=dict)
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
    names = list(self.fields)
    for field, wanted, known in (
        ('rows_run', self.rows_run, names),
        ('columns_run', self.columns_run, self.shown_columns),
    ):
      for name in wanted:
        if name not in known:
          raise ConfigError(
              f'SweepConfig.{field}: {name!r} is none of {", ".join(known)}'
          )
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
  def folder(self) -> str:
    """Where the cells go: a language from elsewhere has a folder of its own."""
    elsewhere = self.data_dir or self.language
    return f'runs/{_slug(elsewhere) or "here"}' if elsewhere else self.results

  @property
  def readme(self) -> str:
    """The README that the results are rendered into."""
    return os.path.join(os.path.dirname(self.folder), 'README.md')


def _slug(text: str) -> str:
  return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')


class Cell(NamedTuple):
  """One number of the table, for one seed."""

  row: str
  column: str
  seed: int

  def path(self, sweep: SweepConfig) -> str:
    """Where its result is kept."""
    name = _slug(f'{self.row} {self.column} {self.seed}')
    return os.path.join(sweep.folder, f'{name}.json')


def cells(sweep: SweepConfig) -> Iterator[Cell]:
  """Yields all cells, column by column: related numbers appear together."""
  for column in sweep.columns_run or sweep.shown_columns:
    for row in sweep.rows_run or sweep.fields:
      for seed in sweep.seeds:
        yield Cell(row, column, seed)


def settings(sweep: SweepConfig, cell: Cell) -> dict[str, Any]:
  """Returns the fields of `Config` that the experiment sets for a cell."""
  parts = [
      sweep.base, sweep.fields[cell.row],
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


def run(sweep: SweepConfig) -> bool:
  """Runs the cells that have no result.

  Returns:
    Whether all cells have a result now; False: it was interrupted.

  Raises:
    ConfigError: a cell cannot be run.
  """
  wanted = list(cells(sweep))
  for number, cell in enumerate(wanted, 1):
    fields = settings(sweep, cell)
    asked = {'settings': fields, 'data': _data(sweep)}
    if _is_done(cell.path(sweep), asked):
      continue
    print(
        f'cell {number} of {len(wanted)}: {cell.row}, {cell.column},'
        f' seed {cell.seed}',
        file=sys.stderr,
    )
    wall, cpu = time.monotonic(), time.process_time()
    scores = TASKS[sweep.task].run(
        config_lib.from_dict(fields), cell.column, sweep
    )
    if scores is None:
      return False
    _write(cell.path(sweep), {
        'row': cell.row,
        'column': cell.column,
        'seed': cell.seed,
        'scores': scores,
        'seconds': round(time.monotonic() - wall, 1),
        'cpu_seconds': round(time.process_time() - cpu, 1),
        **asked,
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
        'machine': machine.describe(),
    })
  return True


def _data(sweep: SweepConfig) -> dict[str, Any]:
  """Returns what decides a cell's examples besides column and seed."""
  digest = hashlib.sha256()
  files = [sweep.language.partition(':')[0]] if sweep.language else []
  if sweep.data_dir and os.path.isdir(sweep.data_dir):
    files = [
        os.path.join(sweep.data_dir, name)
        for name in sorted(os.listdir(sweep.data_dir))
        if name.endswith(('.src', '.tgt'))
    ]
  for name in files:
    with contextlib.suppress(FileNotFoundError), open(name, 'rb') as file:
      digest.update(file.read())
  fields = ('counts', 'lengths', 'data_dir', 'language')
  data = {name: getattr(sweep, name) for name in fields}
  return data | ({'sha256': digest.hexdigest()} if files else {})


def _is_done(path: str, asked: dict[str, Any]) -> bool:
  """Whether there is a result of what is asked for."""
  try:
    with open(path, encoding='utf-8') as file:
      result = json.load(file)
  except FileNotFoundError:
    return False
  for name, value in asked.items():
    if result[name] != json.loads(json.dumps(value)):
      raise ConfigError(
          f'{path} was made with other {name}; remove it, or choose another'
          ' folder by --config.results'
      )
  return True


def _write(path: str, result: Result) -> None:
  """Writes a file whole or not at all."""
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  with open(path + '.new', 'w', encoding='utf-8') as file:
    json.dump(result, file, indent=1)
    file.write('\n')
  os.replace(path + '.new', path)


def read(sweep: SweepConfig) -> list[Result]:
  """Returns the results there are, in the order of the table."""
  found = []
  with contextlib.suppress(FileNotFoundError):
    for name in sorted(os.listdir(sweep.folder)):
      if name.endswith('.json'):
        path = os.path.join(sweep.folder, name)
        with open(path, encoding='utf-8') as file:
          found.append(json.load(file))
  rows, columns = list(sweep.fields), list(sweep.shown_columns)
  return sorted(
      (r for r in found if r['row'] in rows and r['column'] in columns),
      key=lambda r: (
          rows.index(r['row']), columns.index(r['column']), r['seed']
      ),
  )


BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'


def render(sweep: SweepConfig) -> str:
  """Returns what belongs between the markers: tables, figures, provenance."""
  results = read(sweep)
  if not results:
    return 'No results yet.'
  parts = []
  for title, entries in TASKS[sweep.task].tables(results).items():
    rows = [r for r in sweep.fields if any(row == r for row, _ in entries)]
    known = list(dict.fromkeys(column for _, column in entries))
    columns = [c for c in sweep.shown_columns if c in known] or known
    lines = [f'**{title}**', '', '| | ' + ' | '.join(columns) + ' |']
    lines.append('|---' * (len(columns) + 1) + '|')
    for row in rows:
      texts = [entries.get((row, column), '') for column in columns]
      lines.append(f'| {row} | ' + ' | '.join(texts) + ' |')
    parts.append('\n'.join(lines))
  for name in TASKS[sweep.task].figures(results):
    parts.append(f'![{name}]({os.path.basename(sweep.folder)}/{name}.svg)')
  parts.append(_provenance(results))
  return '\n\n'.join(parts)


def _provenance(results: Sequence[Result]) -> str:
  def every(name: str) -> str:
    return ', '.join(sorted({r['machine'].get(name, '?') for r in results}))

  hours = sum(r['cpu_seconds'] for r in results) / 3600
  return (
      f'{len(results)} cells; {hours:.2f} CPU hours on {every("device")}'
      f' ({every("processor")}), jax {every("jax")}, Python {every("python")},'
      f' commit {every("commit")}.'
  )


def write_readme(sweep: SweepConfig) -> None:
  """Draws the figures, and puts the results into the README if it is ours."""
  for name, svg in TASKS[sweep.task].figures(read(sweep)).items():
    path = os.path.join(sweep.folder, f'{name}.svg')
    with open(path, 'w', encoding='utf-8') as file:
      file.write(svg + '\n')
  with contextlib.suppress(FileNotFoundError):
    with open(sweep.readme, encoding='utf-8') as file:
      text = file.read()
    with open(sweep.readme, 'w', encoding='utf-8') as file:
      file.write(replaced(text, render(sweep)))


def replaced(text: str, results: str) -> str:
  """Returns `text` with `results` between its markers, if it has them."""
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not (begin and end):
    return text
  return f'{before}{BEGIN}\n{results}\n{END}{after}'


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> SweepConfig:
  """Builds a sweep from an experiment file.

  Args:
    path: FILE, or FILE:ARGUMENT.
    overrides: dotted field names and the texts of their values.

  Raises:
    ConfigError: something in them is wrong; for `base` and rows, too.
  """
  values = experiment.load(path)
  experiment.override(values, overrides, SweepConfig)
  sweep = config_lib.from_dict(values, SweepConfig)
  for cell in cells(sweep):
    config_lib.from_dict(settings(sweep, cell))
  return sweep


def main(args: Sequence[str]) -> int:
  """Runs the command; returns its exit code (see `hope_jax.main.main`)."""
  rest, overrides = experiment.split(args)
  files = [a.removeprefix('--config=') for a in rest if '--config=' in a]
  unknown = [a for a in rest if a != '--render' and '--config=' not in a]
  try:
    if len(files) != 1 or unknown:
      raise ConfigError(
          'wanted: --config=experiments/NAME.py [--config.x=y ...] [--render];'
          f' got {" ".join(args) or "nothing"}'
      )
    sweep = load(files[0], overrides)
    done = '--render' in rest or run(sweep)
    write_readme(sweep)
    print(render(sweep))
  except (ConfigError, ValueError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    done = False
  if not done:
    print('stopped; the same command goes on', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
