"""Which numbers a field takes: stated beside its type, checked when made.

    learning_rate: Annotated[float, Range(0, 1000, '(]')] = 1e-3

What a model cannot be made of, or what is no number before its third step, is
refused here, where the field has a name, and not by an overflow later.
"""

import dataclasses
import functools
import typing
from typing import Any

from hope_jax.config.build import ConfigError, shown


@dataclasses.dataclass(frozen=True)
class Range:
  """An interval of numbers; in `ends`, a round bracket leaves that end out."""

  low: float
  high: float
  ends: str = '[]'

  def __contains__(self, value: float) -> bool:
    above = self.low < value if self.ends[0] == '(' else self.low <= value
    below = value < self.high if self.ends[1] == ')' else value <= self.high
    return above and below  # NaN is neither.

  def __str__(self) -> str:
    low, high = (
        str(int(x)) if float(x).is_integer() and abs(x) < 1e12 else f'{x:g}'
        for x in (self.low, self.high)
    )
    return f'{self.ends[0]}{low}, {high}{self.ends[1]}'


# Counts and sizes, up to what 32 bits hold or any machine could.
STEPS = Range(1, 2**31 - 1)
SEED = Range(0, 2**31 - 1)
TOKENS = Range(1, 2**30)
WIDTH = Range(1, 2**20)
LAYERS = Range(1, 10_000)
# Learning rates, and shares.
RATE = Range(0, 1000, '(]')
RATE_OR_ZERO = Range(0, 1000)
SHARE = Range(0, 1)
INSIDE = Range(0, 1, '()')
DECAY = Range(0, 1, '[)')
# As small as float32 holds without losing digits, and as large as it divides.
EPSILON = Range(1e-30, 1)


@functools.cache
def ranges_of(kind: type) -> dict[str, Range]:
  """Returns the range of each field of a dataclass that states one."""
  found = {}
  for name, hint in typing.get_type_hints(kind, include_extras=True).items():
    stated = [m for m in getattr(hint, '__metadata__', ()) if type(m) is Range]
    if stated:
      found[name] = stated[0]
  return found


def check_ranges(config: Any) -> None:
  """Raises a ConfigError that names the first number out of its range.

  Args:
    config: an instance of a dataclass; None has no range, a tuple's items have
      that of the tuple.
  """
  for name, allowed in ranges_of(type(config)).items():
    value = getattr(config, name)
    if not fits(value, allowed):
      each = 'each ' if isinstance(value, tuple) else ''
      raise ConfigError(
          f'{type(config).__name__}.{name}: {each}must be in {allowed};'
          f' got {shown(value)}'
      )


def fits(value: Any, allowed: Range) -> bool:
  """Whether a number is in a range, or each of a tuple; None always is."""
  if isinstance(value, (tuple, list)):
    return all(item is not None and fits(item, allowed) for item in value)
  try:
    return value is None or (not isinstance(value, bool) and value in allowed)
  except TypeError:  # It does not compare with numbers.
    return False
