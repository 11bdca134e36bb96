"""The runner of tables: cells that run once, and READMEs made of them."""

import dataclasses
import glob
import math
import os
import pathlib

import pytest

from hope_jax import files, interrupts
from hope_jax.config import ConfigError
from hope_jax.report import markdown
from hope_jax.studies import grid, runner
from hope_jax.studies.results import read_json, write_json


def test_it_goes_on_where_it_stopped(small):
  """If it fails, hours are run again, or a half-run cell is kept."""
  calls, study = small
  with pytest.raises(interrupts.Stopped, match='SIGTERM'):
    runner.run(study)
  assert len(calls) == 3
  assert len(runner.read(study)) == 2
  runner.run(study)
  assert calls[3:] == [('lstm', 'y', 7), ('hope', 'y', 7)]
  runner.run(study)
  assert len(calls) == 5
  # What was run with other settings is neither kept for these nor lost.
  other = dataclasses.replace(study, base={'model': {'dim': 16}})
  with pytest.raises(ConfigError, match='made with other settings'):
    runner.run(other)
  # Half a file would be taken for a result.
  assert not glob.glob(os.path.join(study.results, '*.new'))
  result = runner.read(study)[-1]
  assert result['settings']['model'] == {
      'dim': 8, 'titans': {'chunk': 32, 'projection_chunk': 32},
  }
  for name in ('seconds', 'cpu_seconds', 'date', 'data', 'machine'):
    assert name in result
  assert {'jax', 'python', 'device', 'processor'} <= set(result['machine'])


def test_a_signal_has_its_exit_code(small, monkeypatch, capsys):
  """If it fails, what started a study takes the end of a machine for Ctrl-C."""
  _, study = small
  monkeypatch.setattr(grid, 'load', lambda *_, **__: study)
  assert runner.command('small') == 143
  assert capsys.readouterr().err.splitlines()[-1] == (
      'stopped; the same command goes on'
  )
  assert runner.command('small') == 0


def test_one_study_at_a_time_writes_to_a_folder(small):
  """If it fails, two of the same command train each cell twice."""
  calls, study = small
  os.makedirs(study.results)
  held = files.Lock(os.path.join(study.results, '.lock'))
  with pytest.raises(ConfigError, match=f'written to by pid {os.getpid()} on'):
    runner.run(study)
  assert not calls
  held.release()
  calls += [None] * 3  # no signal
  runner.run(study)
  assert len(runner.read(study)) == 4


@pytest.mark.parametrize(
    'content',
    ['', '{"row": "A", ', 'null', '[1]', '{}', '[' * 10**5, '"A"',
     '{"row": ["A"], "column": "x", "seed": 7}',
     '{"row": "A", "column": "x", "seed": "7", "scores": {}}',
     '{"row": "A", "column": "x", "seed": 7}',
     '{"row": "A", "column": "x", "seed": 7, "scores": NaN}',
     '{"row": "A", "column": "x", "seed": 7, "scores": {}, "settings": 1}'],
)
def test_a_file_that_is_no_result(small, content):
  """If it fails, a damaged result ends a study in a trace, or is shown."""
  calls, study = small
  os.makedirs(study.results)
  path = pathlib.Path(study.results, 'a_x_7.json')
  path.write_text(content)
  for step in (runner.run, runner.write_readme):
    with pytest.raises(ConfigError, match='results') as caught:
      step(dataclasses.replace(study, columns_run=('x',)))
    assert '\n' not in str(caught.value)
  assert path.read_text() == content


def test_rates_are_searched_and_the_best_is_run(small, monkeypatch):
  """If it fails, a table compares rows at rates that none of them wants."""
  _, study = small
  tried = []

  def run(config, cell, study):
    rate = config.optimizer.learning_rate
    tried.append((cell.row, rate, cell.seed))
    if rate > 0.5:
      raise FloatingPointError('loss is nan')
    best = {'A': 0.1, 'B': 0.003}[cell.row]
    return {'loss': abs(math.log(rate / best)), 'score': rate}

  task = grid.TASKS['count']._replace(run=run)
  monkeypatch.setitem(grid.TASKS, 'count', task)
  study = dataclasses.replace(
      study, columns=('x',), seeds=(1, 2), trials=6,
      base={'optimizer': {'learning_rate': 0.9}},
  )
  runner.run(study)
  found = runner.read(study)
  assert [(r['row'], r['seed']) for r in found] == [
      ('B', 1), ('B', 2), ('A', 1), ('A', 2)
  ]
  for result in found:
    best = {'A': 0.1, 'B': 0.0037}[result['row']]
    assert result['learning_rate'] == best
    assert result['settings']['optimizer']['learning_rate'] == best
    assert best in result['trials'] and len(result['trials']) >= 4
  # Nothing twice, but for what diverged, which has no result.
  before = len(tried)
  runner.run(study)
  assert all(rate > 0.5 for _, rate, _ in tried[before:])
  with pytest.raises(ConfigError, match='0 is the seed of these'):
    dataclasses.replace(study, seeds=(0, 1))


def test_the_readme_is_made_of_the_results(small):
  """If it fails, a table says what no file does."""
  calls, study = small
  assert runner.render(study) == 'No results yet.'
  calls += [None] * 3  # no signal
  runner.run(study)
  runner.write_readme(study)
  text = pathlib.Path(study.readme).read_text()
  assert text.startswith('# Mine\n') and text.endswith('\nafter\n')
  assert '| A | 5 | 7 |' in text
  assert '![plot](results/plot.svg)' in text
  assert (pathlib.Path(study.results) / 'plot.svg').exists()
  runner.write_readme(study)
  assert pathlib.Path(study.readme).read_text() == text
  # A number changed by hand is not what is rendered.
  edited = text.replace('| A | 5 | 7 |', '| A | 9 | 7 |')
  begin, end = runner.markers(study)
  assert edited != markdown.replaced(edited, begin, end, runner.render(study))


def test_a_cell_that_diverges_does_not_stop_the_others(small, monkeypatch):
  """If it fails, a study ends for good at the first loss that is no number."""
  calls, study = small
  calls += [None] * 3  # no signal
  task = grid.TASKS['count']

  def diverges(config, cell, study):
    if cell.column == 'x' and config.model.architecture == 'lstm':
      raise FloatingPointError('loss is nan at step 3')
    return task.run(config, cell, study)

  monkeypatch.setitem(
      grid.TASKS, 'count', task._replace(run=diverges)
  )
  with pytest.raises(FloatingPointError, match='B, x, seed 7: loss is nan'):
    runner.run(study)
  assert len(runner.read(study)) == 3


def test_a_readme_without_markers_is_left_alone():
  """If it fails, results of elsewhere end up in a README of something else."""
  assert markdown.replaced('# Mine\n', '<', '>', 'x') == '# Mine\n'


def test_json_is_what_was_written(tmp_path):
  """If it fails, a result is not the one that was measured, or is unreadable.
  """
  value = {
      'curve': [[1, 2.5], [3, None]], 'text': '[\n a,  b\n]', 'empty': [],
      'names': ['a', 'b  c'], 'nested': [{'x': [1, 2, 3]}],
  }
  path = tmp_path / 'new' / 'x.json'
  write_json(str(path), value)
  assert read_json(str(path)) == value
  lines = path.read_text().splitlines()
  assert any('[1, 2.5]' in line for line in lines)
  assert [p.name for p in path.parent.iterdir()] == ['x.json']
