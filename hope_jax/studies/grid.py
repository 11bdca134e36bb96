"""The cells of a study, what each is run with, and the results there are."""

from collections.abc import Collection, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
from typing import Any

from hope_jax import config as config_lib
from hope_jax.config import (
  Config,
  ConfigError,
  ModelConfig,
  StudyConfig,
  architectures,
  experiment,
)
from hope_jax.config.build import shown
from hope_jax.optim import registry
from hope_jax.studies import (
  formal_languages,
  language_modeling,
  optimizers,
  recall,
)
from hope_jax.studies.results import Result, expected, read_json, slug
from hope_jax.studies.task import Cell
from hope_jax.tasks import language_files

TASKS = {
    'formal_languages': formal_languages.TASK,
    'language_modeling': language_modeling.TASK,
    'mad': recall.MAD,
    'mqar': recall.MQAR,
    'needles': recall.NEEDLES,
    'optimizers': optimizers.TASK,
}


def path(study: StudyConfig, cell: Cell) -> str:
  """Where the result of a cell is kept."""
  rate = '' if cell.learning_rate is None else f' {cell.learning_rate:g}'
  name = slug(f'{cell.row} {cell.column} {cell.seed}{rate}')
  return os.path.join(study.results, f'{name}.json')


def cells(study: StudyConfig) -> Iterator[Cell]:
  """Yields all cells, column by column: related numbers appear together."""
  for column in study.columns_run or study.shown_columns:
    for row in study.rows_run or study.fields:
      for seed in study.seeds:
        yield Cell(row, column, seed)


def settings(study: StudyConfig, cell: Cell) -> dict[str, Any]:
  """Returns the fields of `Config` that the experiment sets for a cell."""
  return _settings(study, cell, _shared(study, cell))


def config_of(study: StudyConfig, cell: Cell) -> Config:
  """Returns the configuration of a cell.

  A field of the model that rows share is for those whose architecture reads it;
  a row's own field must be read by its own.

  Args:
    study: the study.
    cell: one of its cells.

  Raises:
    ConfigError: the fields are no configuration.
  """
  model = settings(study, cell).get('model', {})
  name = model.get('architecture', ModelConfig.architecture)
  shared = _shared(study, cell)
  kept = architectures.only_read(name, shared.get('model', {}))
  shared = shared | {'model': kept}
  config = config_lib.from_dict(_settings(study, cell, shared))
  own = study.fields[cell.row].get('model', {})
  architectures.require_read(config.model, own)
  try:
    registry.check_options(config.optimizer.name, config.optimizer.options)
  except ValueError as error:
    raise ConfigError(f'OptimizerConfig: {error}') from error
  return config


def _shared(study: StudyConfig, cell: Cell) -> dict[str, Any]:
  return _merge(study.base, study.by_column.get(cell.column, {}))


def _settings(study: StudyConfig, cell: Cell, shared: dict) -> dict[str, Any]:
  seed = {'train': {'seed': cell.seed}, 'data': {'seed': cell.seed}}
  merged = _merge(_merge(shared, study.fields[cell.row]), seed)
  if cell.learning_rate is not None:
    rate = {'optimizer': {'learning_rate': cell.learning_rate}}
    merged = _merge(merged, rate)
  return merged


def _merge(old: Any, new: Any) -> Any:
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return new
  return old | {k: _merge(old.get(k, {}), v) for k, v in new.items()}


def asked(study: StudyConfig, cell: Cell) -> dict[str, Any]:
  """What decides a cell's result; JSON values."""
  data = _data(study) | TASKS[study.task].data(study)
  found = {'settings': settings(study, cell), 'data': data}
  return json.loads(json.dumps(found))


def _data(study: StudyConfig) -> dict[str, Any]:
  """Returns what decides a cell's examples besides column and seed."""
  digest = hashlib.sha256()
  files = [study.language.partition(':')[0]] if study.language else []
  if study.data_dir:
    found = language_files.find(study.data_dir).values()
    files = sorted(path for pair in found for path in pair)
  for name in files:
    with contextlib.suppress(FileNotFoundError), open(name, 'rb') as file:
      digest.update(file.read())
  fields = ('counts', 'lengths', 'data_dir', 'language')
  data = {name: getattr(study, name) for name in fields}
  if study.data_dir:
    data['data_dir'] = study.shown_columns[0]  # however it was spelled
  if study.options:
    data['options'] = study.options
  return data | ({'sha256': digest.hexdigest()} if files else {})


def require_same(study: StudyConfig, cell: Cell, result: Result) -> None:
  """Raises a ConfigError if a result is of other settings or other data."""
  for name, wanted in asked(study, cell).items():
    if f'every_{name}' in result:
      # Not what an experiment set, but all there was, defaults included.
      same = _contains(result[f'every_{name}'], wanted)
    else:
      same = result[name] == wanted
    if not same:
      raise ConfigError(
          f'{path(study, cell)} was made with other {name}; remove it, or'
          ' choose another folder by --config.results'
      )


def _contains(whole: Any, part: Any) -> bool:
  if not (isinstance(whole, dict) and isinstance(part, dict)):
    return whole == part
  return all(
      name in whole and _contains(whole[name], value)
      for name, value in part.items()
  )


def read(study: StudyConfig) -> dict[Cell, Result]:
  """Returns the results there are, in the order of the table."""
  found = {}
  with contextlib.suppress(FileNotFoundError):
    for name in sorted(os.listdir(study.results)):
      if name.endswith('.json'):
        with expected(os.path.join(study.results, name)):
          content = read_json(os.path.join(study.results, name))
          for result in TASKS[study.task].read(content):
            found[_cell(result)] = result
  rows, columns = list(study.fields), list(study.shown_columns)
  shown = [c for c in found if c.row in rows and c.column in columns]
  shown.sort(
      key=lambda c: (
          rows.index(c.row), columns.index(c.column), c.seed,
          c.learning_rate or 0.0,
      )
  )
  return {cell: found[cell] for cell in shown}


def _cell(result: Result) -> Cell:
  """Returns whose result it is."""
  cell = Cell(
      result['row'], result['column'], result['seed'],
      result.get('learning_rate'),
  )
  kinds = ((str,), (str,), (int,), (int, float, type(None)))
  if not all(type(x) in kind for x, kind in zip(cell, kinds)):
    raise TypeError(f'it is of {shown(tuple(cell))}')
  return cell


def load(
    file: str, overrides: Sequence[tuple[str, Any]] = (), *, results: str = ''
) -> StudyConfig:
  """Builds a study from an experiment file.

  Args:
    file: FILE, or FILE:ARGUMENT.
    overrides: dotted field names and their values, or the texts of these. A
      language from elsewhere has results of its own, in runs/, unless they say
      where.
    results: the folder of the results; '': what the fields say.

  Raises:
    ConfigError: something in them is wrong; for `base` and rows, too.
  """
  values = experiment.load(file)
  if 'task' not in values and {'model', 'data', 'train'} & values.keys():
    raise ConfigError(
        f'--config: {file} is one run and no study, which has a task and rows;'
        f' another command runs it: train --config={file}'
    )
  known = {
      'rows_run': [row.get('name') for row in values.get('rows', ())],
      'columns_run': values.get('columns', ()),
  }
  overrides = [
      (name, _names(text, known[name])) if name in known else (name, text)
      for name, text in overrides
  ]
  experiment.override(values, overrides, StudyConfig)
  study = config_lib.from_dict(values, StudyConfig)
  elsewhere = study.data_dir or study.language
  if elsewhere and 'results' not in dict(overrides):
    # Not among the experiment's own.
    results = results or f'runs/{slug(elsewhere) or "here"}'
  if results:
    study = dataclasses.replace(study, results=results)
  _check(study)
  for cell in cells(study):
    config_of(study, cell)
  return study


def _names(text: Any, known: Sequence[str]) -> Any:
  """Reads names with commas between them, of which some have their own.

  Returns:
    The tuple of them in Python, which `experiment.override` takes as it is; so
    is what is Python already.
  """
  if not isinstance(text, str) or text.startswith(('(', '[')):
    return text
  if text.startswith(('"', "'")):
    return f'({text},)'
  words, names = text.split(','), []
  while words:
    # The longest name there is; else the word, which will be complained of.
    for size in range(len(words), 0, -1):
      name = ','.join(words[:size]).strip()
      if name in known or size == 1:
        break
    names += [name] if name else []
    words = words[size:]
  return repr(tuple(names))


def _check(study: StudyConfig) -> None:
  """Raises a ConfigError if the task does not know what the study names."""
  if study.task not in TASKS:
    raise ConfigError(
        f'StudyConfig.task must be one of {", ".join(TASKS)};'
        f' got {study.task!r}'
    )
  task = TASKS[study.task]
  if study.task != 'formal_languages' and (study.data_dir or study.language):
    raise ConfigError(
        'StudyConfig.data_dir and language are of formal languages; the task'
        f' {study.task!r} reads neither'
    )
  names = list(study.fields)
  for field, given in (
      ('rows', [row['name'] for row in study.rows]),
      ('columns', study.shown_columns),
  ):
    if len({slug(name) for name in given}) < len(given):
      raise ConfigError(
          f'StudyConfig.{field} share the names of their files; got'
          f' {", ".join(given)}'
      )
  columns = () if study.data_dir or study.language else study.columns
  for field, given, known in (
      ('counts', study.counts, task.counts),
      ('lengths', study.lengths, task.lengths),
      ('options', study.options, task.options),
      ('rows', names, task.rows),
      ('columns', columns, task.columns),
      ('by_column', study.by_column, task.columns),
      ('rows_run', study.rows_run, names),
      ('columns_run', study.columns_run, study.shown_columns),
  ):
    for name in given:
      _one_of(field, name, known)


def _one_of(field: str, name: str, known: Collection[str]) -> None:
  parts = name.split('+')
  number = '#' in known and all(p.isdigit() and int(p) > 0 for p in parts)
  if not (number or name in known or '*' in known):
    wanted = ', '.join(known) or 'nothing'
    wanted = wanted.replace('#', "a number, or several as '4+8'")
    raise ConfigError(f'StudyConfig.{field}: {name!r} is none of {wanted}')
