"""Experiment files, and fields that the command line changes in them."""

import ast
from collections.abc import Sequence
import dataclasses
import importlib.util
import os
import typing
from typing import Any

from hope_jax.config.build import ConfigError


def split(
    args: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes `--config.a.b=c` and `--config.a.b c` out of the arguments.

  The library for this, `ml_collections.config_flags`, knows only the fields
  that the experiment file mentions; here any field can be set.

  Returns:
    The other arguments, and (dotted name, text) pairs.

  Raises:
    ConfigError: a field without a value.
  """
  rest, overrides = [], []
  args = list(args)
  while args:
    arg = args.pop(0)
    if not arg.startswith('--config.'):
      rest.append(arg)
      continue
    name, equals, text = arg.removeprefix('--config.').partition('=')
    if not equals:
      if not args or args[0].startswith('--'):
        raise ConfigError(f'--config.{name} needs a value: --config.{name}=...')
      text = args.pop(0)
    overrides.append((name, text))
  return rest, overrides


def _value(name: str, text: str, kind: Any) -> Any:
  """Reads the text of a field: as it is where a string belongs, else Python."""
  for part in name.split('.'):
    if not dataclasses.is_dataclass(kind):
      break
    kind = typing.get_type_hints(kind).get(part)
  if kind is str:
    return text
  words = {'true': True, 'false': False, 'none': None}
  try:
    value = words.get(text.lower(), text)
    value = ast.literal_eval(text) if value is text else value
  except (ValueError, SyntaxError):
    value = text
  if typing.get_origin(kind) is not tuple:
    return value
  if typing.get_args(kind)[0] is str and not text.startswith(('(', '[')):
    return tuple(word for word in text.split(',') if word)
  return value if isinstance(value, (tuple, list)) else (value,)


def override(
    values: dict[str, Any], overrides: Sequence[tuple[str, str]], kind: type
) -> None:
  """Sets fields in place.

  Args:
    values: nested groups of fields.
    overrides: dotted names and texts.
    kind: the dataclass of the configuration, which knows the fields' types.

  Raises:
    ConfigError: a name goes through something that is no group.
  """
  for name, text in overrides:
    *groups, field = name.split('.')
    group = values
    for part in groups:
      group = group.setdefault(part, {})
      if not isinstance(group, dict):
        raise ConfigError(f'--config.{name}: {part!r} is a value, not a group')
    group[field] = _value(name, text, kind)


def load(path: str) -> dict[str, Any]:
  """Returns what the `get_config` of an experiment file gives.

  Args:
    path: FILE, or FILE:ARGUMENT for `get_config(ARGUMENT)`.

  Raises:
    ConfigError: there is no such file, or it fails.
  """
  path, _, argument = path.partition(':')
  if not os.path.isfile(path):
    raise ConfigError(f'--config: no file {path!r}; try experiments/tiny.py')
  try:
    spec = importlib.util.spec_from_file_location('experiment', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
    return config.to_dict()
  except Exception as error:  # The file is a program; anything may happen.
    raise ConfigError(
        f'--config: {path} failed: {type(error).__name__}: {error}'
    ) from error
