"""Formal languages: of one's own, and the published files."""

import json

import pytest

from hope_jax.config import ConfigError
from tests.studies import command

LANGUAGE = '''
def ones(seed):
  """1*, a language of one symbol whose strings may end anywhere."""
  def split(sizes):
    return [('1' * n, [{'1', 'end'}] * n) for n in sizes]
  return {'train': split([3] * 8), 'bin0': split([2, 3]), 'bin1': split([5])}
'''


def test_the_tiny_form_of_formal_languages(tmp_path, monkeypatch):
  """If it fails, training, scoring or writing of a cell is broken."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text(LANGUAGE)
  path = str(command.ROOT / 'experiments' / 'formal_languages.py')
  args = [
      f'--config={path}:tiny', '--config.language=mine.py:ones',
      '--config.rows_run=Hope,', '--config.base.train.steps=60',
      '--config.base.train.eval_every=5',
  ]
  assert command.study(*args) == 0
  (file,) = (tmp_path / 'runs' / 'mine_py_ones').glob('*.json')
  result = json.loads(file.read_text())
  assert result['column'] == 'ones'
  # Whatever comes, all is legal: learned before the last step.
  assert result['scores']['bin0'] == result['scores']['bin1'] == 1
  assert result['scores']['stopped'] == 'until'
  assert list(result['scores']['eigenvalues']) == ['1']
  assert command.study(*args, '--render') == 0


def test_the_published_files_train(tmp_path, monkeypatch):
  """If it fails, the benchmark's own data cannot be used."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()
  for name, text in {
      'train_50': ('0 1\n' * 8, '1 0\n' * 8),
      'valid_50': ('0 1\n', '1 0\n'),
      'test_50': ('0 1 1\n', '1 0 1\n'),
  }.items():
    for kind, lines in zip(('src', 'tgt'), text):
      (tmp_path / 'mine' / f'{name}.{kind}').write_text(lines)
  path = str(command.ROOT / 'experiments' / 'formal_languages.py')
  args = [
      f'--config={path}:tiny', '--config.data_dir=mine',
      '--config.rows_run=LSTM,',
  ]
  assert command.study(*args) == 0
  (file,) = (tmp_path / 'runs' / 'mine').glob('*.json')
  scores = json.loads(file.read_text())['scores']
  assert {'bin0', 'bin1', 'steps'} <= set(scores)
  assert 'bin2' not in scores
  # Other strings in the same folder are another result.
  (tmp_path / 'mine' / 'test_50.src').write_text('0 0 1\n')
  with pytest.raises(ConfigError, match='made with other data'):
    command.study(*args)
