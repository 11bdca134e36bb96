"""Experiment files, and fields that the command line changes in them.

An experiment file is a program: `load` runs it. `ml_collections.config_flags`
reads `--config.x=y` too, but knows only the fields that the file mentions, and
takes some texts for other values without a word (tests/config/test_experiment
shows which); here a field's declared type says how its text is read.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import os
import pathlib
import re
import typing
from typing import Any

from hope_jax.config.build import ConfigError, hints_of, nearest, options_of

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Where the experiments that come with the package are: inside it once it is
# installed, beside it in the repository.
_INSIDE = _PACKAGE / 'experiments'
SHIPPED = _INSIDE if _INSIDE.is_dir() else _PACKAGE.parent / 'experiments'


def split(
    args: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes `--config.a.b=c` and `--config.a.b c` out of the arguments.

  Returns:
    The other arguments, and (dotted name, text) pairs.

  Raises:
    ConfigError: a field without a value.
  """
  rest, overrides = [], []
  args = list(args)
  while args:
    arg = args.pop(0)
    if not re.match(r'--?config\.', arg):
      rest.append(arg)
      continue
    name, equals, text = arg.partition('.')[2].partition('=')
    if not equals:
      if not args or args[0].startswith('--'):
        raise ConfigError(f'--config.{name} needs a value: --config.{name}=...')
      text = args.pop(0)
    overrides.append((name, text))
  return rest, overrides


def _words(text: str) -> tuple[str, ...]:
  """Returns the words between commas; quotes and brackets hold commas."""
  if text.startswith(('(', '[', '"', "'")):
    try:
      value = ast.literal_eval(text)
      words = value if isinstance(value, (tuple, list)) else (value,)
      return tuple(words)
    except (ValueError, SyntaxError):
      pass
  words = re.split(r',(?![^()]*\))', text)
  return tuple(word.strip() for word in words if word.strip())


def _literal(text: str) -> Any:
  """Reads a Python value; what is none is text."""
  words = {'true': True, 'false': False, 'none': None}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _whole(value: Any) -> Any:
  """1e3, as large numbers are written, is an integer where one is wanted."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return value


def _free(text: str) -> Any:
  """Reads the text of a field of a free name; who reads it checks the type."""
  value = _literal(text)
  if value is text and ',' in text:
    return _words(text)
  return value if '.' in text else _whole(value)


def _kind_of(name: str, kind: Any) -> Any:
  """Returns the type of a dotted field of a dataclass; None: a free name."""
  for part in name.split('.'):
    if not dataclasses.is_dataclass(kind):
      return None  # Below a field of free names, such as optimizer.options.
    declared = {field.name: field for field in dataclasses.fields(kind)}
    hint = hints_of(kind).get(part, Any)
    # Of a dict that holds fields of a dataclass, such as a study's `base`.
    fields_of = part in declared and declared[part].metadata.get('fields_of')
    kind = fields_of or hint
  return kind


def _value(name: str, text: str, kind: Any) -> Any:
  """Reads the text of a field as the value that its type asks for."""
  kind = _kind_of(name, kind)
  if kind is None:
    return _free(text)
  kinds = options_of(kind)
  if text.lower() == 'none' and type(None) in kinds:
    return None
  if str in kinds:
    if text.lower() == 'none':
      raise ConfigError(
          f'{name} is text and takes no None; leave it empty: --config.{name}='
      )
    return text
  if any(typing.get_origin(k) is typing.Literal for k in kinds):
    literals = [o for k in kinds for o in typing.get_args(k)]
    return next((o for o in literals if str(o) == text), _literal(text))
  for option in kinds:
    if typing.get_origin(option) is tuple:
      if typing.get_args(option)[0] is str:
        return _words(text)
      value = _literal(text)
      value = value if isinstance(value, (tuple, list)) else (value,)
      whole = typing.get_args(option)[0] is int
      return tuple(map(_whole, value)) if whole else value
  value = _literal(text)
  return _whole(value) if int in kinds else value


def override(
    values: dict[str, Any],
    overrides: Mapping[str, Any] | Sequence[tuple[str, Any]],
    kind: type,
) -> None:
  """Sets fields in place.

  Args:
    values: nested groups of fields.
    overrides: dotted names and values; a value that is a str is read as on the
      command line.
    kind: the dataclass of the configuration, which knows the fields' types.

  Raises:
    ConfigError: a name goes through something that is no group, or the text is
      none of the field's values.
  """
  if isinstance(overrides, Mapping):
    overrides = list(overrides.items())
  for name, value in overrides:
    *groups, field = name.split('.')
    group = values
    for part in groups:
      group = group.setdefault(part, {})
      if not isinstance(group, dict):
        raise ConfigError(f'--config.{name}: {part!r} is a value, not a group')
    if isinstance(value, Mapping):
      fields = {f'{name}.{part}': x for part, x in value.items()}
      override(values, fields, kind)
      continue
    if isinstance(value, str):
      value = _value(name, value, kind)
    group[field] = value


def find(name: str) -> pathlib.Path:
  """Returns the file of an experiment.

  Args:
    name: a path; or, where no such file is, the name of an experiment that
      comes with the package: `quickstart`, `optimizers/digits`, or its path in
      the repository, `experiments/quickstart.py`.

  Raises:
    ConfigError: there is none; the nearest name is suggested.
  """
  file = pathlib.Path(os.path.expanduser(name))
  if file.is_file():
    return file
  short = name.removeprefix('experiments/').removesuffix('.py')
  if re.fullmatch(r'\w+(/\w+)*', short):
    path = SHIPPED / f'{short}.py'
    if path.is_file():
      return path
  raise ConfigError(
      f'--config: no file {name!r}, and no experiment of that name comes with'
      f' hope_jax; {nearest(short, shipped(), "there are")}'
  )


def shipped() -> list[str]:
  """Returns the names of the experiments that come with the package."""
  files = SHIPPED.rglob('*.py')
  return sorted(
      path.relative_to(SHIPPED).with_suffix('').as_posix() for path in files
  )


def load(path: str) -> dict[str, Any]:
  """Returns what the `get_config` of an experiment file gives.

  The file is Python and is run: load only files that you trust.

  Args:
    path: FILE, or FILE:ARGUMENT for `get_config(ARGUMENT)`; FILE as in `find`.

  Raises:
    ConfigError: there is no such file, or it fails.
  """
  path, _, argument = path.partition(':')
  file = find(path)
  try:
    spec = importlib.util.spec_from_file_location('experiment', file)
    if spec is None or spec.loader is None:
      raise ImportError('its name does not end in .py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
    return config.to_dict() if hasattr(config, 'to_dict') else dict(config)
  except Exception as error:  # The file is a program; anything may happen.
    raise ConfigError(
        f'--config: {path} failed: {type(error).__name__}: {error}'
    ) from error
