"""From plain values to checked dataclasses, with errors that teach."""

from collections.abc import Mapping
import dataclasses
import difflib
import types
import typing
from typing import Any, Literal


class ConfigError(ValueError):
  """A configuration that cannot be run; its message is one line."""


def require(condition: bool, message: str) -> None:
  """Raises a ConfigError of `message` unless `condition` holds."""
  if not condition:
    raise ConfigError(message)


def positive(config: Any, *names: str) -> None:
  """Raises a ConfigError naming the first field of `config` that is not > 0."""
  for name in names:
    value = getattr(config, name)
    require(
        value > 0,
        f'{type(config).__name__}.{name} must be positive; got {value}',
    )


def build(kind: type, values: Any, path: str = '') -> Any:
  """Builds the dataclass `kind` from nested mappings.

  Args:
    kind: a dataclass whose fields are values, tuples, or such dataclasses.
    values: what to change of its defaults; a `kind` is returned as it is.
    path: dotted name of the group, for messages.

  Returns:
    A `kind`.

  Raises:
    ConfigError: an unknown field (with the nearest name) or a wrong type.
  """
  if dataclasses.is_dataclass(values):
    return values
  require(
      isinstance(values, Mapping) or hasattr(values, 'items'),
      f'{path or "config"} must be a group of fields; got {values!r}',
  )
  hints = typing.get_type_hints(kind)
  names = [f.name for f in dataclasses.fields(kind)]
  kwargs = {}
  for name, value in values.items():
    where = f'{path}.{name}' if path else name
    if name not in names:
      near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
      hint = f'fields: {", ".join(names)}'
      if near:
        hint = f'did you mean {near[0]!r}?'
      raise ConfigError(f'unknown field {where!r}; {hint}')
    kwargs[name] = _coerce(value, hints[name], where)
  return kind(**kwargs)


def _coerce(value: Any, kind: Any, path: str) -> Any:
  """Returns `value` as `kind`, or says what `path` would accept."""
  origin = typing.get_origin(kind)
  if dataclasses.is_dataclass(kind):
    return build(kind, value, path)
  if origin is Literal:
    options = typing.get_args(kind)
    require(
        value in options,
        f'{path} must be one of {", ".join(map(repr, options))}; got {value!r}',
    )
    return value
  if origin in (types.UnionType, typing.Union):
    inner = [k for k in typing.get_args(kind) if k is not type(None)]
    return None if value is None else _coerce(value, inner[0], path)
  if kind is dict or origin is dict:
    require(
        isinstance(value, Mapping),
        f'{path} must be names with values; got {value!r}',
    )
    return dict(value)
  if origin is tuple:
    require(
        isinstance(value, (tuple, list)),
        f'{path} must be a tuple; got {value!r}',
    )
    item = typing.get_args(kind)[0]
    return tuple(_coerce(v, item, f'{path}[{i}]') for i, v in enumerate(value))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  require(
      isinstance(value, kind) and not (kind is int and isinstance(value, bool)),
      f'{path} must be {kind.__name__}; got {value!r}',
  )
  return value
