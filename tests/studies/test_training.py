"""What a cell trains: the ablation, and runs that time ended."""

import glob
import json

import pytest

from hope_jax.config import ConfigError
from hope_jax.studies import grid
from tests.studies import command


def test_the_tiny_form_of_the_ablation(tmp_path):
  """If it fails, a row of Table 6 cannot be run."""
  path = str(command.ROOT / 'experiments' / 'ablation.py')
  rows = [cell.row for cell in grid.cells(grid.load(path))]
  table = {
      'Hope', 'without DGD', 'without retention', 'without CMS',
      'without inner k', 'without inner v', 'with inner q', 'with momentum',
  }
  assert table | {f'literal, {name}' for name in table - {
      'Hope', 'with momentum'
  }} < set(rows)
  assert all(rows.count(name) == 3 for name in table)
  assert command.study(
      f'--config={path}:tiny', f'--config.results={tmp_path}/results',
      '--config.rows_run=without DGD',
  ) == 0
  (file,) = (tmp_path / 'results').glob('*.json')
  result = json.loads(file.read_text())
  assert 1 < result['scores']['perplexity'] < 512
  assert result['settings']['model']['titans']['dgd'] is False


def test_a_column_is_any_text(tmp_path):
  """If it fails, a text of one's own is no column of the comparison."""
  for i in range(2):
    (tmp_path / f'{i}.txt').write_text('to be or not to be, ' * 40)
  path = str(command.ROOT / 'experiments' / 'text.py')
  arguments = (
      f'--config={path}:tiny', f'--config.results={tmp_path}/results',
      '--config.columns=mine,', '--config.rows_run=Transformer++,',
  )
  with pytest.raises(ConfigError, match="column 'mine' is none of stdlib"):
    command.study(*arguments)
  assert command.study(
      *arguments,
      '--config.by_column={"mine": {"data": {"source": "files",'
      f' "path": "{tmp_path}/*.txt"}}}}}}',
  ) == 0
  (file,) = (tmp_path / 'results').glob('*.json')
  scores = json.loads(file.read_text())['scores']
  assert 0 < scores['bits_per_byte'] < 8
  assert scores['parameters'] > 0


@pytest.mark.parametrize(
    ('name', 'row', 'complaint'),
    [
        ('mqar', 'DeltaNet 32', 'before anything was measured'),
        ('text', 'Transformer++', 'compares runs of equal length'),
    ],
)
def test_a_run_without_time_is_no_result(tmp_path, name, row, complaint):
  """If it fails, what a slow machine made of a cell is shown as the cell."""
  path = str(command.ROOT / 'experiments' / f'{name}.py')
  with pytest.raises(ConfigError, match=complaint):
    command.study(
        f'--config={path}:tiny', f'--config.results={tmp_path}/results',
        f'--config.rows_run={row},', '--config.base.train.steps=9',
        '--config.base.train.log_every=5',
        '--config.base.train.max_seconds=0.001',
    )
  assert not glob.glob(f'{tmp_path}/results/*.json')
