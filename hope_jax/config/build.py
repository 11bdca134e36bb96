"""From plain values to checked dataclasses, with errors that teach."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import difflib
import functools
import os
import types
import typing
from typing import Any, Literal


class ConfigError(ValueError):
  """A configuration that cannot be run; its message is one line.

  It may quote a file from elsewhere: what a terminal would obey is escaped.
  """

  def __init__(self, message: str):
    super().__init__(
        ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    )


def require(condition: bool, message: str) -> None:
  """Raises a ConfigError of `message` unless `condition` holds."""
  if not condition:
    raise ConfigError(message)


def shown(value: Any) -> str:
  """Returns `value` as a message shows it: on one line, and not without end."""
  if isinstance(value, int) and value.bit_length() > 128:
    # Python itself refuses to write out the longest.
    return f'a whole number of about {value.bit_length() * 0.30103:.0f} digits'
  text = ' '.join(repr(value).split())
  return text if len(text) <= 200 else f'{text[:197]}...'


def first_line(error: BaseException, otherwise: str = '') -> str:
  """Returns the first line of a library's error, which may have many or none.

  Args:
    error: the error.
    otherwise: said of one without a text; '': its type.
  """
  lines = str(error).strip().splitlines()
  return lines[0] if lines else otherwise or type(error).__name__


def flat(values: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Yields the values of nested groups of fields by their dotted names."""
  if not isinstance(values, Mapping):
    yield path, values
    return
  for name, value in values.items():
    yield from flat(value, f'{path}.{name}' if path else str(name))


def folder(path: str, name: str) -> str:
  """Returns the path of a folder, with `~` written out.

  Raises:
    ConfigError: it is on no file system that is mounted here, or no path.
  """
  require(
      '://' not in path,
      f'{name} is a folder of a mounted file system; got {path!r}, and stores'
      ' such as gs:// have to be mounted first (gcsfuse, s3fs)',
  )
  require('\0' not in path, f'{name} is a path; got {path!r}')
  path = os.path.expanduser(path)
  require(
      not path.startswith('~'),
      f'{name}: nobody here has the home folder of {path!r}; a folder of that'
      f" name is './{path}'",
  )
  return path


def nearest(name: str, names: Iterable[str], otherwise: str) -> str:
  """Returns what to say of a name that does not exist."""
  names = list(names)
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  if near:
    return f'did you mean {near[0]!r}?'
  return f'{otherwise}: {", ".join(names)}'


def options_of(kind: Any) -> tuple[Any, ...]:
  """Returns the types that a declared type allows: itself, or its options."""
  if typing.get_origin(kind) in (types.UnionType, typing.Union):
    return typing.get_args(kind)
  return (kind,)


@functools.cache
def hints_of(kind: type) -> Mapping[str, Any]:
  """Returns the types of a dataclass's fields, by name."""
  return typing.get_type_hints(kind)


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
  hints = hints_of(kind)
  names = [f.name for f in dataclasses.fields(kind)]
  kwargs = {}
  for name, value in values.items():
    where = f'{path}.{name}' if path else name
    if name not in names:
      raise ConfigError(
          f'unknown field {where!r}; {nearest(name, names, "fields")}'
      )
    kwargs[name] = _coerce(value, hints[name], where)
  return kind(**kwargs)


def _coerce(value: Any, kind: Any, path: str) -> Any:
  """Returns `value` as `kind`, or says what `path` would accept."""
  origin = typing.get_origin(kind)
  if isinstance(kind, type) and dataclasses.is_dataclass(kind):
    return build(kind, value, path)
  if origin is Literal:
    options = typing.get_args(kind)
    require(
        value in options,
        f'{path} must be one of {", ".join(map(repr, options))};'
        f' got {shown(value)}',
    )
    return value
  options = options_of(kind)
  if len(options) > 1:
    return _first_fitting(value, options, path)
  if kind is Any:
    return value
  if kind is dict or origin is dict:
    require(
        isinstance(value, Mapping),
        f'{path} must be names with values; got {shown(value)}',
    )
    return dict(value)
  if origin is tuple:
    require(
        isinstance(value, (tuple, list)),
        f'{path} must be a tuple; got {shown(value)}',
    )
    item = typing.get_args(kind)[0]
    return tuple(_coerce(v, item, f'{path}[{i}]') for i, v in enumerate(value))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError:
      raise ConfigError(
          f'{path} must be a number that a float holds; got {shown(value)}'
      ) from None
  require(
      isinstance(value, kind) and not (kind is int and isinstance(value, bool)),
      f'{path} must be {kind.__name__}; got {shown(value)}',
  )
  return value


def _first_fitting(value: Any, options: tuple[Any, ...], path: str) -> Any:
  """Returns `value` as the first of the types that takes it."""
  if value is None and type(None) in options:
    return None
  fault = None
  for option in options:
    if option is not type(None):
      try:
        return _coerce(value, option, path)
      except ConfigError as error:
        fault = fault or error
  raise fault or ConfigError(f'{path} must be None; got {shown(value)}')
