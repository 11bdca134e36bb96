"""Experiment files, and every kind of field on the command line."""

import dataclasses
import os
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags
import pytest

from hope_jax import config as config_lib
from hope_jax import run
from hope_jax.config import ConfigError, experiment


@dataclasses.dataclass(frozen=True)
class Inner:
  """A group below a group."""

  rate: float | None = None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Every:
  """A field of every kind."""

  number: int = 1
  rate: float = 0.5
  flag: bool = True
  text: str = ''
  numbers: tuple[int, ...] = (1, 2)
  words: tuple[str, ...] = ('a',)
  rates: tuple[float, ...] = ()
  optional: str | None = 'x'
  several: int | str = 0
  inner: Inner = Inner()


def set_field(name, text):
  """Returns the configuration after `--config.NAME=TEXT`."""
  rest, overrides = experiment.split([f'--config.{name}={text}'])
  assert not rest
  values = {}
  experiment.override(values, overrides, Every)
  return config_lib.from_dict(values, Every)


@pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
        ('number', '3', 3),
        ('number', '1_000', 1000),
        ('number', '1e3', 1000),
        ('rate', '1', 1.0),
        ('rate', '1e-3', 1e-3),
        ('flag', 'false', False),
        ('flag', 'False', False),
        ('text', '007', '007'),
        ('text', '1e3', '1e3'),
        ('text', 'true', 'true'),
        ('text', '', ''),
        ('text', 'a=b', 'a=b'),
        ('numbers', '4', (4,)),
        ('numbers', '4,5', (4, 5)),
        ('numbers', '(4,)', (4,)),
        ('numbers', '[4, 5]', (4, 5)),
        ('words', 'a,b', ('a', 'b')),
        ('words', '8', ('8',)),
        ('words', '04,8', ('04', '8')),
        ('words', "('a',)", ('a',)),
        ('words', 'Hope (plain, slow)', ('Hope (plain, slow)',)),
        ('words', 'Hope (plain, slow),b', ('Hope (plain, slow)', 'b')),
        ('words', '"a, b","c"', ('a, b', 'c')),
        ('words', '"a, b"', ('a, b',)),
        ('rates', '1,2e-3', (1.0, 2e-3)),
        ('optional', 'None', None),
        ('optional', 'word', 'word'),
        ('inner.rate', 'none', None),
        ('inner.rate', '2', 2.0),
        ('inner.options', "{'a': 1}", {'a': 1}),
    ],
)
def test_a_field_gets_what_was_typed(name, text, value):
  """If it fails, a field silently holds something else than was asked for."""
  found = set_field(name, text)
  for part in name.split('.'):
    found = getattr(found, part)
  assert found == value and type(found) is type(value)


def test_free_names():
  """If it fails, options of an optimizer cannot be given by name."""
  found = set_field('inner.options.period', '10')
  assert found.inner.options == {'period': 10}
  assert set_field('inner.options.kind', 'x').inner.options == {'kind': 'x'}


@pytest.mark.parametrize(
    ('name', 'text', 'complaint'),
    [
        ('number', '1.5', 'number must be int; got 1.5'),
        ('number', 'None', 'number must be int; got None'),
        ('number', '1,2', 'number must be int; got (1, 2)'),
        ('rate', 'x', "rate must be float; got 'x'"),
        ('flag', '1', 'flag must be bool; got 1'),
        ('text', 'None', 'text is text and takes no None'),
        ('numbers', 'a', "numbers[0] must be int; got 'a'"),
        ('numbres', '1', "did you mean 'numbers'?"),
        ('inner.rat', '1', "unknown field 'inner.rat'; did you mean 'rate'?"),
        ('inner', '1', 'inner must be a group of fields; got 1'),
    ],
)
def test_what_is_refused(name, text, complaint):
  """If it fails, a slip is taken for a value, or answered with a trace."""
  with pytest.raises(ConfigError, match='^[^\n]+$') as error:
    set_field(name, text)
  assert complaint in str(error.value)


def test_why_not_config_flags():
  """If it fails, ml_collections reads texts right, and ours can go.

  Told of every field, it makes one word of two, a text of None and a float of
  what an untyped field was given; told by the file, it knows no other field.
  """
  fields = ml_collections.ConfigDict({'words': ('a',), 'text': '', 'n': 1})
  values = flags.FlagValues()
  args = ['', '--c.words=a,b', '--c.text=None']
  config_flags.DEFINE_config_dict(
      'c', fields, flag_values=values, sys_argv=args
  )
  values(args)
  assert values.c.words == ('a,b',)
  assert values.c.text == 'None'
  for text, fault in (('--c.n=1e3', flags.Error), ('--c.m=1', Exception)):
    values, args = flags.FlagValues(), ['', text]
    with pytest.raises(fault):
      config_flags.DEFINE_config_dict(
          'c', fields, flag_values=values, sys_argv=args
      )
      values(args)


def test_fields_of_a_run():
  """If it fails, only what the experiment file mentions can be changed."""
  rest, overrides = experiment.split([
      'train', '--config.data.path=123', '--config.model.titans.eta_max=0.5',
      '--config.model.continuum.periods', '1,8', '--seed=3',
      '--config.model.tie_embeddings', 'true', '--config.model.titans.momentum',
      'False', '--config.optimizer.learning_rate=1',
  ])
  assert rest == ['train', '--seed=3']
  config = run.load('tiny', overrides, workdir='x')
  assert config.data.path == '123'
  assert config.model.titans.eta_max == 0.5
  assert config.model.continuum.periods == (1, 8)
  assert config.model.tie_embeddings is True
  assert config.model.titans.momentum is False
  assert config.optimizer.learning_rate == 1.0
  assert config.model.dim == 32  # From the file.
  none = [('model.titans.eta_max', 'none')]
  assert run.load('tiny', none).model.titans.eta_max is None


def test_values_of_python():
  """If it fails, a notebook has to write its numbers as text."""
  changes = {'train.steps': 8, 'model.continuum.periods': '1,8'}
  config = run.load('tiny', changes)
  assert config.train.steps == 8
  assert config.model.continuum.periods == (1, 8)


def test_experiment_with_an_argument(tmp_path):
  """If it fails, `--config=file.py:argument` does not reach get_config."""
  path = tmp_path / 'sized.py'
  path.write_text(
      'import ml_collections\n'
      'def get_config(size):\n'
      '  return ml_collections.ConfigDict({"model": {"dim": int(size)}})\n'
  )
  config = run.load(f'{path}:64')
  assert config.model.dim == 64
  assert config.workdir == os.path.join('runs', 'sized')


def test_experiments_by_name(tmp_path, monkeypatch):
  """If it fails, an installed package has no experiments; a file comes first.
  """
  monkeypatch.chdir(tmp_path)
  assert experiment.find('tiny') == experiment.find('experiments/tiny.py')
  assert experiment.find('optimizers/digits').is_file()
  assert {'quickstart', 'mqar', 'optimizers/text'} <= set(experiment.shipped())
  (tmp_path / 'tiny').write_text('')
  assert experiment.find('tiny').resolve() == tmp_path / 'tiny'
  for name in ('quikstart', '../tiny.py', '/experiments/tiny.py'):
    with pytest.raises(ConfigError, match='no file'):
      experiment.find(name)
