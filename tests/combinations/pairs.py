"""Rows of settings that cover every pair of values that can stand together.

The fields and their values come from the dataclasses of the configuration and
from the registries, so that a new option is covered without a word here.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import itertools
import random
import typing
from typing import Any, Literal

Row = dict[str, Any]  # dotted field -> value
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def switches(kind: type, path: str = '') -> Iterator[tuple[str, tuple]]:
  """Yields the fields of a dataclass that are enumerations or switches."""
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    name, hint = f'{path}{field.name}', hints[field.name]
    if dataclasses.is_dataclass(hint):
      yield from switches(hint, f'{name}.')
    elif typing.get_origin(hint) is Literal:
      yield name, typing.get_args(hint)
    elif hint is bool:
      yield name, (False, True)


def pairs_of(row: Row) -> set[Pair]:
  """The pairs of settings in a row, each in the order of the names."""
  return set(itertools.combinations(sorted(row.items()), 2))


def all_pairs(fields: dict[str, tuple]) -> set[Pair]:
  """Every pair of values of two different fields."""
  return {
      ((a, x), (b, y))
      for a, b in itertools.combinations(sorted(fields), 2)
      for x in fields[a]
      for y in fields[b]
  }


def cover(
    fields: dict[str, tuple],
    is_valid: Callable[[Row], bool],
    makes_room: Iterable[Row],
) -> tuple[list[Row], set[Pair]]:
  """Chooses rows that hold every pair of values that any row can hold.

  Greedy: a row starts from a pair that no row holds yet, and takes the other
  fields one by one, each with the value that covers most.

  Args:
    fields: field -> values.
    is_valid: whether the configuration accepts a row.
    makes_room: settings under which a pair may stand that cannot stand alone,
      the likeliest first.

  Returns:
    The rows, and the pairs that nothing makes room for.
  """
  draw = random.Random(0)
  wanted = all_pairs(fields)
  makes_room = [{}, *makes_room]
  rows, refused = [], set()
  for pair in sorted(wanted, key=repr):
    if pair not in wanted:
      continue
    row = next(
        (
            extra | dict(pair)
            for extra in makes_room
            if not any(extra.get(k, v) != v for k, v in pair)
            and is_valid(extra | dict(pair))
        ),
        None,
    )
    if row is None:
      wanted.discard(pair)
      refused.add(pair)
      continue
    others = [name for name in fields if name not in row]
    draw.shuffle(others)
    for name in others:
      values = draw.sample(fields[name], len(fields[name]))
      row |= _best(row, name, values, wanted, is_valid)
    rows.append(row)
    wanted -= pairs_of(row)
  return rows, refused


def _best(row, name, values, wanted, is_valid) -> Row:
  """The value of a field that covers most of what is wanted; {}: none may."""

  def gain(value):
    new = pairs_of({**row, name: value}) & wanted
    return sum(any(key == name for key, _ in pair) for pair in new)

  for value in sorted(values, key=gain, reverse=True):
    if is_valid({**row, name: value}):
      return {name: value}
  return {}
