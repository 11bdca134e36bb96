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
  --config.language=FILE.py:NAME   a language of your own; both into runs/, or
                                   where --config.results says
  --config.rows_run=Hope,LSTM --config.columns_run=parity --config.seeds=0,1
  --config.base.train.steps=100 --config.results=runs/mine
"""

from collections.abc import Sequence
import contextlib
import hashlib
import json
import os
import sys
import time
from typing import Any

from hope_jax import config as config_lib
from hope_jax.config import ConfigError, experiment
from hope_jax.evals import machine
from hope_jax.evals.results import Result
from hope_jax.evals.sweep_config import (
  TASKS,
  Cell,
  SweepConfig,
  cells,
  load,
  settings,
)


def run(sweep: SweepConfig) -> bool:
  """Runs the cells that have no result.

  Returns:
    Whether all cells have a result now; False: it was interrupted.

  Raises:
    ConfigError: a cell cannot be run.
    FloatingPointError: cells have diverged; after all others have run.
  """
  wanted, diverged = list(cells(sweep)), []
  for number, cell in enumerate(wanted, 1):
    if is_done(sweep, cell):
      continue
    asked = _asked(sweep, cell)
    print(
        f'cell {number} of {len(wanted)}: {cell.row}, {cell.column},'
        f' seed {cell.seed}',
        file=sys.stderr,
    )
    wall, cpu = time.monotonic(), time.process_time()
    try:
      scores = TASKS[sweep.task].run(
          config_lib.from_dict(asked['settings']), cell.column, sweep
      )
    except FloatingPointError as error:
      diverged.append(f'{cell.row}, {cell.column}, seed {cell.seed}: {error}')
      continue
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
  if diverged:
    raise FloatingPointError('; '.join(diverged))
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
  if sweep.data_dir:
    data['data_dir'] = sweep.shown_columns[0]  # however it was spelled
  return data | ({'sha256': digest.hexdigest()} if files else {})


def _asked(sweep: SweepConfig, cell: Cell) -> dict[str, Any]:
  """What decides a cell's result."""
  return {'settings': settings(sweep, cell), 'data': _data(sweep)}


def is_done(sweep: SweepConfig, cell: Cell) -> bool:
  """Returns whether there is a result of the cell.

  Raises:
    ConfigError: there is one of other settings or other data.
  """
  path = cell.path(sweep)
  try:
    with open(path, encoding='utf-8') as file:
      result = json.load(file)
  except FileNotFoundError:
    return False
  for name, value in _asked(sweep, cell).items():
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
    for name in sorted(os.listdir(sweep.results)):
      if name.endswith('.json'):
        path = os.path.join(sweep.results, name)
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
    parts.append(f'![{name}]({os.path.basename(sweep.results)}/{name}.svg)')
  parts.append(_provenance(results))
  return '\n\n'.join(parts)


def _provenance(results: Sequence[Result]) -> str:
  def every(name: str) -> str:
    return ', '.join(sorted({r['machine'].get(name, '?') for r in results}))

  hours = sum(r['cpu_seconds'] for r in results) / 3600
  stopped = sum(r['scores'].get('stopped') == 'time' for r in results)
  note = f' {stopped} of them were stopped by train.max_seconds.'
  return (
      f'{len(results)} cells; {hours:.2f} CPU hours on {every("device")}'
      f' ({every("processor")}), jax {every("jax")}, Python {every("python")},'
      f' commit {every("commit")}.' + (note if stopped else '')
  )


def write_readme(sweep: SweepConfig) -> None:
  """Draws the figures, and puts the results into the README if it is ours."""
  for name, svg in TASKS[sweep.task].figures(read(sweep)).items():
    path = os.path.join(sweep.results, f'{name}.svg')
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


def main(args: Sequence[str]) -> int:
  """Runs the command; returns its exit code (see `hope_jax.main.main`)."""
  if any(arg in ('-h', '--help') for arg in args):
    print(__doc__)
    return 0
  done, failed = True, ''
  try:
    rest, overrides = experiment.split(args)
    files = [a.removeprefix('--config=') for a in rest if '--config=' in a]
    unknown = [a for a in rest if a != '--render' and '--config=' not in a]
    if len(files) != 1 or unknown:
      raise ConfigError(
          'wanted: --config=experiments/NAME.py [--config.x=y ...] [--render];'
          f' got {" ".join(args) or "nothing"}; --help says more'
      )
    sweep = load(files[0], overrides)
    try:
      done = '--render' in rest or run(sweep)
    except FloatingPointError as error:
      failed = str(error)
    write_readme(sweep)
    print(render(sweep))
  except (ConfigError, ValueError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    done = False
  if failed:
    print(f'error: {failed}', file=sys.stderr)
    return 1
  if not done:
    print('stopped; the same command goes on', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
