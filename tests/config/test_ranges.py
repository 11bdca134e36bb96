"""The range of every number of a configuration."""

import dataclasses
import math
import typing

import pytest

from hope_jax import run
from hope_jax.config import (
    Config,
    ConfigError,
    StudyConfig,
    from_dict,
    ranges,
)
from hope_jax.config.build import hints_of


def numbers(kind, path=''):
  """Yields (dotted name, dataclass, field, type) of every number."""
  for field in dataclasses.fields(kind):
    where = f'{path}.{field.name}' if path else field.name
    hint = hints_of(kind)[field.name]
    if dataclasses.is_dataclass(hint):
      yield from numbers(hint, where)
      continue
    kinds = {hint, *typing.get_args(hint)} - {type(None), ...}
    if kinds & {int, float} and typing.get_origin(hint) is not dict:
      yield where, kind, field.name, float if float in kinds else int


STUDY = {'task': 'mqar', 'results': 'runs/none', 'rows': ({'name': 'a'},)}
ALL = [
    *((Config, {}, *number) for number in numbers(Config)),
    *((StudyConfig, STUDY, *number) for number in numbers(StudyConfig)),
]
HUGE = 10**399


def attempt(kind, base, where, value):
  """Returns the complaint about a value of a field; None: it is taken."""
  several = typing.get_origin(hint_at(kind, where)) is tuple
  values = value = (value,) if several else value
  for name in reversed(where.split('.')):
    values = {name: values}
  try:
    from_dict(base | values, kind)
  except ConfigError as error:
    assert '\n' not in str(error) and len(str(error)) < 400, str(error)
    return str(error)
  return None


def hint_at(kind, where):
  for name in where.split('.'):
    kind = hints_of(kind)[name]
  return kind


def test_every_number_has_a_range():
  """If it fails, a number exists that may be anything."""
  assert len(ALL) > 60
  for _, _, where, owner, name, _ in ALL:
    assert name in ranges.ranges_of(owner), where


@pytest.mark.parametrize(
    ('kind', 'base', 'where', 'owner', 'name', 'number'), ALL,
    ids=[f'{case[0].__name__}-{case[2]}' for case in ALL],
)
def test_ends_of_a_range(kind, base, where, owner, name, number):
  """If it fails, a number that nothing can be made of is no clear error."""
  allowed = ranges.ranges_of(owner)[name]
  step = (lambda x, to: x + to) if number is int else (
      lambda x, to: math.nextafter(x, to * math.inf)
  )
  inside = [
      allowed.low if allowed.ends[0] == '[' else step(allowed.low, 1),
      allowed.high if allowed.ends[1] == ']' else step(allowed.high, -1),
  ]
  outside = [
      allowed.low if allowed.ends[0] == '(' else step(allowed.low, -1),
      allowed.high if allowed.ends[1] == ')' else step(allowed.high, 1),
      HUGE, -HUGE,
  ]
  if number is float:
    outside += [math.nan, math.inf, -math.inf]
  for value in inside:
    complaint = attempt(kind, base, where, number(value))
    # What an end contradicts elsewhere may be said, but not that it is none.
    assert complaint is None or str(allowed) not in complaint, complaint
  for value in outside:
    complaint = attempt(kind, base, where, value)
    assert complaint and name in complaint, (value, complaint)
  if number is int:
    for value in (0.5, math.nan, math.inf, '1'):
      complaint = attempt(kind, base, where, value)
      assert complaint and name in complaint, (value, complaint)


@pytest.mark.parametrize('text', [
    'nan', 'inf', '-inf', '1e400', '-1e400', '9' * 400, '-' + '9' * 400,
    '9' * 5000, '1' + 'e' * 5000, '(' * 300, '', 'none', 'True', '1,2', '0x',
])
@pytest.mark.parametrize('where', [
    'optimizer.learning_rate', 'optimizer.b1', 'train.seed', 'model.dim',
    'model.continuum.periods', 'model.titans.eta_max', 'data.holdout',
])
def test_what_a_hand_may_type(where, text):
  """If it fails, a slip on the command line is a traceback, or is taken."""
  if text == 'none' and where in ('optimizer.b1', 'model.titans.eta_max'):
    assert run.load('tiny', [(where, text)])
    return
  with pytest.raises(ConfigError) as error:
    config = run.load('tiny', [(where, text)])
    if where == 'model.continuum.periods' and text == '1,2':
      raise ConfigError(f'periods are {config.model.continuum.periods}')
  message = str(error.value)
  assert where.rpartition('.')[2] in message
  assert '\n' not in message and len(message) < 500


@pytest.mark.parametrize('value', [
    'nan', math.nan, True, 0, -1, math.inf, 0.5, HUGE, 'many', (3, 0),
], ids=lambda value: str(value)[:5])
@pytest.mark.parametrize('group', ['counts', 'lengths'])
def test_numbers_of_free_names(group, value):
  """If it fails, a study counts its examples by what is no number."""
  values = STUDY | {group: {'train': value}}
  with pytest.raises(ConfigError, match='^[^\n]{,400}$') as error:
    from_dict(values, StudyConfig)
  assert f'{group}.train' in str(error.value)
