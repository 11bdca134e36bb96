"""Cells, their settings, and the mistakes in an experiment."""

import ast
import dataclasses

import pytest

from hope_jax.config import ConfigError, ModelConfig, StudyConfig
from hope_jax.studies import grid
from hope_jax.studies.task import Cell
from tests.studies import command


def test_a_column_has_fields_of_its_own(small):
  """If it fails, a column's training is another's, or a row's word is lost."""
  _, study = small
  study = dataclasses.replace(
      study, by_column={'y': {'model': {'dim': 16, 'titans': {'chunk': 4}}}}
  )
  found = {
      (cell.row, cell.column): grid.settings(study, cell)['model']
      for cell in grid.cells(study)
  }
  titans = {'projection_chunk': 32}
  assert found['A', 'x'] == {'dim': 8, 'titans': titans | {'chunk': 32}}
  assert found['A', 'y'] == {'dim': 16, 'titans': titans | {'chunk': 32}}
  assert found['B', 'y']['titans'] == titans | {'chunk': 4}


def test_what_rows_share_is_for_those_that_read_it(small):
  """If it fails, a row is refused for a field that is another row's.

  A row's own field, which its architecture does not read, is refused.
  """
  _, study = small
  base = {
      'model': {'dim': 8, 'heads': 2, 'attention_window': 3,
                'titans': {'chunk': 4, 'dgd': True}},
      'train': {'steps': 5},
      'optimizer': {'warmup_steps': 0},
  }
  rows = (
      {'name': 'L', 'model': {'architecture': 'lstm'}},
      {'name': 'H', 'model': {'titans': {'projection_chunk': 4}}},
      {'name': 'T', 'model': {'architecture': 'titans'}},
  )
  study = dataclasses.replace(study, base=base, rows=rows, columns=('x',))
  lstm, hope, titans = (grid.config_of(study, c) for c in grid.cells(study))
  default = ModelConfig()
  assert lstm.model.dim == hope.model.dim == titans.model.dim == 8
  assert lstm.model.titans.chunk == default.titans.chunk
  assert hope.model.titans.chunk == hope.model.titans.projection_chunk == 4
  assert hope.model.titans.dgd and not titans.model.titans.dgd  # it is fixed
  assert hope.model.attention_window == default.attention_window
  assert lstm.train.steps == hope.train.steps == 5
  # What is written down is what the experiment says, for all rows alike.
  cell = list(grid.cells(study))[1]
  assert grid.settings(study, cell)['model']['attention_window'] == 3
  for row, complaint in (
      ({'architecture': 'lstm', 'heads': 2}, 'heads is not read by'),
      ({'architecture': 'titans', 'titans': {'dgd': True}}, 'titans.dgd is'),
      ({'architecture': 'lstmm'}, "'lstm'"),
  ):
    wrong = dataclasses.replace(study, rows=({'name': 'R', 'model': row},))
    with pytest.raises(ConfigError, match=complaint):
      grid.config_of(wrong, Cell('R', 'x', 7))


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('A, b', ('A, b',)),
        ('A, b,C', ('A, b', 'C')),
        ('C,', ('C',)),
        ('C,A,A, b', ('C', 'A', 'A, b')),
        ("('A, b', 'C')", ('A, b', 'C')),
        ('"A, b"', ('A, b',)),
        ('"A, b", \'C\'', ('A, b', 'C')),
        ('D,C', ('D', 'C')),
    ],
)
def test_a_name_may_have_a_comma(text, names):
  """If it fails, such a row cannot be asked for."""
  found = ast.literal_eval(grid._names(text, ['A, b', 'C', 'A']))
  assert found == names


def test_a_row_with_a_comma_is_run():
  """If it fails, the README's row cannot be run by its name."""
  path = str(command.ROOT / 'experiments' / 'formal_languages.py')
  name = 'Hope (plain heads, values adapt)'
  study = grid.load(path, [('rows_run', name), ('columns_run', 'parity')])
  assert {cell.row for cell in grid.cells(study)} == {name}


def test_rows_that_would_share_a_file_are_named():
  """If it fails, one row's results are shown as another's."""
  for names in (('A', 'A'), ('A (x)', 'A x')):
    rows = tuple({'name': name} for name in names)
    with pytest.raises(ConfigError, match='share the names of their files'):
      grid._check(StudyConfig(task='mqar', results='r', rows=rows))


def test_mistakes_are_named():
  """If it fails, a typing error costs a traceback, or an hour."""
  path, mqar, mad = (
      str(command.ROOT / 'experiments' / f'{name}.py')
      for name in ('formal_languages', 'mqar', 'mad')
  )
  for args, complaint in (
      ([f'--config={path}:tiny', '--config.rows_run=Mamba'], "'Mamba' is none"),
      ([f'--config={path}:tiny', '--config.base.model.dmi=3'], "'dim'"),
      ([f'--config={path}:tiny', '--config.base.model.heads=3'], 'heads'),
      ([f'--config={path}:tiny', '--config.data_dir=nowhere'], 'nowhere'),
      ([f'--config={path}:tiny', '--config.columns=parity,latin'], "'latin'"),
      ([f'--config={path}:tiny', '--config.counts.bin=3'], "'bin' is none of"),
      ([f'--config={path}', '--config.lengths.bin4=3'], "'bin4' is none of"),
      ([f'--config={path}', '--config.seeds', '--render'], 'needs a value'),
      ([f'--config={mqar}', '--config.columns=4,four'], "'four' is none"),
      (
          [f'--config={mqar}', '--config.by_column.six.train.steps=1'],
          "by_column: 'six' is none of a number",
      ),
      ([f'--config={mad}', '--config.lengths.vocab=64'], 'is none of nothing'),
      (
          [f'--config={path}:tiny', '--config.counts.bin0=0',
           '--config.counts.bin1=0'],
          "'bin0' or 'bin1'",
      ),
      (
          [f'--config={path}:tiny', '--config.lengths.bin0=(1, 1)',
           '--config.counts.train=2', '--config.lengths.train=(1, 1)'],
          "'bin0' of parity has no strings",
      ),
  ):
    with pytest.raises(ConfigError, match='^[^\n]+$') as error:
      command.study(*args)
    assert complaint in str(error.value)
