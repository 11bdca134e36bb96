"""Every field of a configuration with its default and its comment.

The comments beside the fields in this folder are the only description there is;
`main --help` and the documentation both read them from the source.
"""

import ast
from collections.abc import Iterator
import dataclasses
import functools
import inspect
import sys
import textwrap
from typing import NamedTuple

from hope_jax.config.build import ConfigError, nearest
from hope_jax.config.ranges import ranges_of


class Field(NamedTuple):
  """One field, as its source declares it."""

  name: str
  kind: str  # The annotation, on one line; a range stands beside it.
  default: str  # The default as written; '' where a value must be given.
  comment: str  # Without '#', on one line; '' where the name says it all.
  range: str = ''  # The numbers it takes, such as '[0, 1)'.


class Group(NamedTuple):
  """The fields of one dataclass."""

  path: str  # Dotted; '' for the configuration itself.
  summary: str  # The first sentence of its docstring.
  fields: tuple[Field, ...]


def groups(kind: type, path: str = '') -> Iterator[Group]:
  """Yields the groups of a configuration, outermost first.

  Args:
    kind: a dataclass.
    path: its dotted name.
  """
  declared, fields, inner = _declared(kind), [], {}
  for f in dataclasses.fields(kind):
    factory = f.default_factory
    default, shown = f.default, declared[f.name]
    if factory is not dataclasses.MISSING:
      default = factory()
      shown = shown._replace(default=repr(default))
    if dataclasses.is_dataclass(default):
      inner[f.name] = type(default)
    else:
      fields.append(shown)
  summary = ' '.join((inspect.getdoc(kind) or '').split('\n\n')[0].split())
  yield Group(path, summary, tuple(fields))
  for name, group in inner.items():
    yield from groups(group, f'{path}.{name}' if path else name)


@functools.cache
def _declared(kind: type) -> dict[str, Field]:
  """Returns the fields of a class by name, with the comments above them."""
  text = inspect.getsource(sys.modules[kind.__module__])
  lines = text.splitlines()
  (node,) = (
      n for n in ast.parse(text).body
      if isinstance(n, ast.ClassDef) and n.name == kind.__name__
  )
  found, ranges = {}, ranges_of(kind)
  for item in node.body:
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
      name = item.target.id
      found[name] = Field(
          name,
          ast.unparse(_without_range(item.annotation)),
          ast.unparse(item.value) if item.value else '',
          _comment(lines, item),
          str(ranges.get(name, '')),
      )
  return found


def _without_range(annotation: ast.expr) -> ast.expr:
  """Returns T of `Annotated[T, range]`."""
  match annotation:
    case ast.Subscript(ast.Name('Annotated'), ast.Tuple([kind, *_])):
      return kind
  return annotation


def _comment(lines: list[str], item: ast.stmt) -> str:
  """Returns the comment above a statement, and the one at its end."""
  above = []
  for line in reversed(lines[: item.lineno - 1]):
    if not line.strip().startswith('#'):
      break
    above.insert(0, line.strip().removeprefix('#').strip())
  end = lines[(item.end_lineno or item.lineno) - 1][item.end_col_offset or 0 :]
  after = end.partition('#')[2].strip()
  return ' '.join(filter(None, (*above, after)))


def as_text(kind: type, wanted: str = '') -> str:
  """Lists fields for a terminal of 80 columns.

  Args:
    kind: the configuration's dataclass.
    wanted: the dotted name of a group, of a group's parent or of a field; '':
      everything.

  Raises:
    ConfigError: there is no such name; the nearest is suggested.
  """
  every = list(groups(kind))
  shown = [
      group for group in every
      if not wanted or f'{group.path}.'.startswith(f'{wanted}.')
  ]
  if not shown:
    path, _, name = wanted.rpartition('.')
    shown = [
        group._replace(fields=fields) for group in every
        if group.path == path
        and (fields := tuple(f for f in group.fields if f.name == name))
    ]
  if not shown:
    names = [group.path for group in every if group.path]
    names += [
        f'{group.path}.{f.name}'.lstrip('.')
        for group in every for f in group.fields
    ]
    raise ConfigError(
        f'no group or field {wanted!r} in {kind.__name__};'
        f' {nearest(wanted, names, "there are")}'
    )
  return '\n\n'.join(_group_text(group) for group in shown if group.fields)


def _group_text(group: Group) -> str:
  title = f'--config.{group.path}.' if group.path else '--config.'
  lines = textwrap.wrap(f'{title}  {group.summary}', 80)
  for field in group.fields:
    default = f'={field.default}' if field.default else '  (must be given)'
    within = f'  in {field.range}' if field.range else ''
    lines += textwrap.wrap(
        f'  {field.name}{default}{within}', 80, subsequent_indent='      ',
        break_on_hyphens=False,
    )
    if field.kind.startswith('Literal['):
      options = field.kind.removeprefix('Literal[').removesuffix(']')
      lines += _indented(f'one of {options}')
    if field.comment:
      lines += _indented(field.comment)
  return '\n'.join(lines)


def _indented(text: str) -> list[str]:
  return textwrap.wrap(
      text, 80, initial_indent='      ', subsequent_indent='      ',
      break_on_hyphens=False,
  )

