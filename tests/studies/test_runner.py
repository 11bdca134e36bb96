"""The runner of tables: cells that run once, and READMEs made of them."""

import ast
import dataclasses
import functools
import glob
import json
import math
import os
import pathlib
import re

import matplotlib
import pytest

from hope_jax.config import (
  ConfigError,
  ModelConfig,
  StudyConfig,
  experiment,
)
from hope_jax.report import markdown
from hope_jax.studies import grid, runner, tables
from hope_jax.studies.results import read_json, write_json
from hope_jax.studies.task import Task
from hope_jax.tasks import needles

ROOT = pathlib.Path(__file__).parents[2]
# Those whose results are part of the repository.
EXPERIMENTS = (
    'ablation', 'formal_languages', 'mad', 'mqar', 'needles',
    'optimizers/landscape', 'optimizers/digits', 'optimizers/text',
)


def command(*args):
  """What `main study` does with these arguments."""
  rest, overrides = experiment.split(args)
  (file,) = (a.removeprefix('--config=') for a in rest if '=' in a)
  return runner.command(file, overrides, render='--render' in rest)


def is_done(study):
  """Whether every cell has a result of these very settings."""
  found = grid.read(study)
  for cell, result in found.items():
    grid.require_same(study, cell, result)
  return bool(found)


@pytest.fixture
def small(tmp_path, monkeypatch):
  """A study of four cells whose task counts how often it runs."""
  calls = []

  def run(config, cell, study):
    del study
    calls.append((config.model.architecture, cell.column, config.train.seed))
    if len(calls) == 3:  # the user presses Ctrl-C
      return None
    return {'score': len(calls)}

  def scores(results):
    return {'Score': {
        (r['row'], r['column']): str(r['scores']['score']) for r in results
    }}

  task = Task(
      run, functools.partial(tables.render, scores),
      lambda results: {'plot': '<svg/>'},
  )
  monkeypatch.setitem(grid.TASKS, 'count', task)
  readme = tmp_path / 'README.md'
  readme.write_text(
      '# Mine\n\n<!-- results: begin -->\n<!-- results: end -->\nafter\n'
  )
  return calls, StudyConfig(
      task='count', results=str(tmp_path / 'results'),
      rows=(
          {'name': 'B', 'model': {'architecture': 'lstm'}},
          {'name': 'A', 'model': {'titans': {'chunk': 32}}},
      ),
      base={'model': {'dim': 8, 'titans': {'projection_chunk': 32}}},
      columns=('x', 'y'), seeds=(7,),
  )


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

  And a row's own field, which its architecture does not read, must get through
  to the configuration, where it is refused.
  """
  _, study = small
  base = {
      'model': {'dim': 8, 'attention_window': 3, 'titans': {'chunk': 4}},
      'train': {'steps': 5},
  }
  rows = (
      {'name': 'L', 'model': {'architecture': 'lstm', 'heads': 2}},
      {'name': 'H', 'model': {'titans': {'projection_chunk': 4}}},
  )
  study = dataclasses.replace(study, base=base, rows=rows, columns=('x',))
  asked = []

  def reads(architecture, field):
    asked.append((architecture, field))
    return field == 'dim' or (
        architecture == 'hope' and field == 'titans.chunk'
    )

  lstm, hope = (grid.config_of(study, c, reads) for c in grid.cells(study))
  default = ModelConfig()
  assert lstm.model.dim == hope.model.dim == 8
  assert lstm.model.titans == default.titans and lstm.model.heads == 2
  assert hope.model.titans.chunk == hope.model.titans.projection_chunk == 4
  assert hope.model.attention_window == default.attention_window
  assert lstm.train.steps == hope.train.steps == 5
  assert ('lstm', 'heads') not in asked
  # What is written down is what the experiment says, for all rows alike.
  (_, cell) = grid.cells(study)
  assert grid.settings(study, cell)['model']['attention_window'] == 3


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
  path = str(ROOT / 'experiments' / 'formal_languages.py')
  name = 'Hope (plain heads, values adapt)'
  study = grid.load(path, [('rows_run', name), ('columns_run', 'parity')])
  assert {cell.row for cell in grid.cells(study)} == {name}


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


def test_it_goes_on_where_it_stopped(small):
  """If it fails, hours are run again, or a half-run cell is kept."""
  calls, study = small
  with pytest.raises(KeyboardInterrupt):
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


def test_the_readme_is_made_of_the_results(small):
  """If it fails, a table says what no file does."""
  calls, study = small
  assert runner.render(study) == 'No results yet.'
  calls += [None] * 3  # no Ctrl-C
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


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_tables_are_rendered_from_their_results(name, monkeypatch):
  """If it fails, a README's table was edited by hand, or is out of date:

    python -m hope_jax.main study --config=experiments/NAME.py --render
  """
  monkeypatch.chdir(ROOT)
  study = grid.load(f'experiments/{name}.py')
  text = pathlib.Path(study.readme).read_text(encoding='utf-8')
  begin, end = runner.markers(study)
  assert text.count(begin) == text.count(end) == 1
  assert text == markdown.replaced(text, begin, end, runner.render(study))


def shown(svg):
  """The texts of a drawing: what does not depend on who drew it."""
  return re.findall(r'>([^<>]*)</text>', svg)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_figures_are_drawn_from_their_results(name, monkeypatch):
  """If it fails, a figure was drawn from other results; command as above.

  Another version of matplotlib may place a line elsewhere by a hair: then the
  texts, among them each number of a heat map, are what is compared.
  """
  monkeypatch.chdir(ROOT)
  study = grid.load(f'experiments/{name}.py')
  for figure, svg in grid.TASKS[study.task].figures(runner.read(study)).items():
    kept = pathlib.Path(study.results, f'{figure}.svg').read_text('utf-8')
    assert shown(kept) == shown(svg) != []
    if f'Matplotlib v{matplotlib.__version__},' in kept:
      assert kept == svg


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_results_are_of_the_experiment_as_it_stands(name, monkeypatch):
  """If it fails, a table shows runs of other settings than the file's."""
  monkeypatch.chdir(ROOT)
  study = grid.load(f'experiments/{name}.py')
  assert is_done(study)
  # And what is compared is what decides: another length is another result.
  longer = [('base.train.steps', '7')]
  other = grid.load(f'experiments/{name}.py', longer)
  with pytest.raises(ConfigError, match='made with other settings'):
    is_done(other)


def test_a_cell_that_diverges_does_not_stop_the_others(small, monkeypatch):
  """If it fails, a study ends for good at the first loss that is no number."""
  calls, study = small
  calls += [None] * 3  # no Ctrl-C
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


def test_rows_that_would_share_a_file_are_named():
  """If it fails, one row's results are shown as another's."""
  for names in (('A', 'A'), ('A (x)', 'A x')):
    rows = tuple({'name': name} for name in names)
    with pytest.raises(ConfigError, match='share the names of their files'):
      grid._check(StudyConfig(task='mqar', results='r', rows=rows))


def test_a_readme_without_markers_is_left_alone():
  """If it fails, results of elsewhere end up in a README of something else."""
  assert markdown.replaced('# Mine\n', '<', '>', 'x') == '# Mine\n'


def test_mistakes_are_named():
  """If it fails, a typing error costs a traceback, or an hour."""
  path, mqar, mad = (
      str(ROOT / 'experiments' / f'{name}.py')
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
      command(*args)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ('name', 'row', 'complaint'),
    [
        ('mqar', 'DeltaNet 32', 'before anything was measured'),
        ('ablation', 'Hope', 'compares runs of equal length'),
    ],
)
def test_a_run_without_time_is_no_result(tmp_path, name, row, complaint):
  """If it fails, what a slow machine made of a cell is shown as the cell."""
  path = str(ROOT / 'experiments' / f'{name}.py')
  with pytest.raises(ConfigError, match=complaint):
    command(
        f'--config={path}:tiny', f'--config.results={tmp_path}/results',
        f'--config.rows_run={row},', '--config.base.train.steps=9',
        '--config.base.train.log_every=5',
        '--config.base.train.max_seconds=0.001',
    )
  assert not glob.glob(f'{tmp_path}/results/*.json')


@pytest.mark.parametrize('task', needles.TASKS)
def test_texts_of_the_tiny_needles_hold_theirs(task):
  """If it fails, the first try of a reader ends in the middle."""
  study = grid.load(str(ROOT / 'experiments' / 'needles.py:tiny'))

  def encode(text):
    return list(text.encode())

  assert task in study.columns
  lengths = study.lengths
  needles.pack(
      task, 0, study.counts['train'], length=lengths['train'], encode=encode
  )
  for seed in range(20):
    for depth in lengths['depths']:
      needles.generate(
          task, seed, 1, length=min(lengths['test']), depth=depth,
          encode=encode,
      )


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
  path = str(ROOT / 'experiments' / 'formal_languages.py')
  args = [
      f'--config={path}:tiny', '--config.language=mine.py:ones',
      '--config.rows_run=Hope,', '--config.base.train.steps=60',
      '--config.base.train.eval_every=5',
  ]
  assert command(*args) == 0
  (file,) = (tmp_path / 'runs' / 'mine_py_ones').glob('*.json')
  result = json.loads(file.read_text())
  assert result['column'] == 'ones'
  # Whatever comes, all is legal: learned before the last step.
  assert result['scores']['bin0'] == result['scores']['bin1'] == 1
  assert result['scores']['stopped'] == 'until'
  assert list(result['scores']['eigenvalues']) == ['1']
  assert command(*args, '--render') == 0


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
  path = str(ROOT / 'experiments' / 'formal_languages.py')
  args = [
      f'--config={path}:tiny', '--config.data_dir=mine',
      '--config.rows_run=LSTM,',
  ]
  assert command(*args) == 0
  (file,) = (tmp_path / 'runs' / 'mine').glob('*.json')
  scores = json.loads(file.read_text())['scores']
  assert {'bin0', 'bin1', 'steps'} <= set(scores)
  assert 'bin2' not in scores
  # Other strings in the same folder are another result.
  (tmp_path / 'mine' / 'test_50.src').write_text('0 0 1\n')
  with pytest.raises(ConfigError, match='made with other data'):
    command(*args)


def test_the_tiny_form_of_the_ablation(tmp_path):
  """If it fails, a row of Table 6 cannot be run."""
  path = str(ROOT / 'experiments' / 'ablation.py')
  rows = [cell.row for cell in grid.cells(grid.load(path))]
  assert len(rows) == 8 * 3
  assert command(
      f'--config={path}:tiny', f'--config.results={tmp_path}/results',
      '--config.rows_run=without DGD',
  ) == 0
  (file,) = (tmp_path / 'results').glob('*.json')
  result = json.loads(file.read_text())
  assert 1 < result['scores']['perplexity'] < 512
  assert result['settings']['model']['titans']['dgd'] is False
