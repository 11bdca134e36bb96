"""The runner of tables: cells that run once, and READMEs made of them."""

import dataclasses
import glob
import json
import os
import pathlib

import pytest

from hope_jax.config import ConfigError
from hope_jax.evals import sweep as sweep_lib
from hope_jax.evals import sweep_config
from hope_jax.tasks import needles

ROOT = pathlib.Path(__file__).parents[2]
# Those of a sweep; experiments/optimizers has a report of its own.
EXPERIMENTS = sorted(
    readme
    for readme in glob.glob(str(ROOT / 'experiments' / '*' / 'README.md'))
    if os.path.isfile(os.path.dirname(readme) + '.py')
)


@pytest.fixture
def small(tmp_path, monkeypatch):
  """A sweep of four cells whose task counts how often it runs."""
  calls = []

  def run(config, column, sweep):
    del sweep
    calls.append((config.model.architecture, column, config.train.seed))
    if len(calls) == 3:  # the user presses Ctrl-C
      return None
    return {'score': len(calls)}

  def tables(results):
    return {'Score': {
        (r['row'], r['column']): str(r['scores']['score']) for r in results
    }}

  task = sweep_config.Task(run, tables, lambda results: {'plot': '<svg/>'})
  monkeypatch.setitem(sweep_config.TASKS, 'count', task)
  readme = tmp_path / 'README.md'
  readme.write_text(f'# Mine\n\n{sweep_lib.BEGIN}\n{sweep_lib.END}\nafter\n')
  return calls, sweep_config.SweepConfig(
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
  _, sweep = small
  sweep = dataclasses.replace(
      sweep, by_column={'y': {'model': {'dim': 16, 'titans': {'chunk': 4}}}}
  )
  found = {
      (cell.row, cell.column): sweep_config.settings(sweep, cell)['model']
      for cell in sweep_config.cells(sweep)
  }
  titans = {'projection_chunk': 32}
  assert found['A', 'x'] == {'dim': 8, 'titans': titans | {'chunk': 32}}
  assert found['A', 'y'] == {'dim': 16, 'titans': titans | {'chunk': 32}}
  assert found['B', 'y']['titans'] == titans | {'chunk': 4}


def test_it_goes_on_where_it_stopped(small):
  """If it fails, hours are run again, or a half-run cell is kept."""
  calls, sweep = small
  assert not sweep_lib.run(sweep)
  assert len(calls) == 3
  assert len(sweep_lib.read(sweep)) == 2
  assert sweep_lib.run(sweep)
  assert calls[3:] == [('lstm', 'y', 7), ('hope', 'y', 7)]
  assert sweep_lib.run(sweep)
  assert len(calls) == 5
  # What was run with other settings is neither kept for these nor lost.
  other = dataclasses.replace(sweep, base={'model': {'dim': 16}})
  with pytest.raises(ConfigError, match='made with other settings'):
    sweep_lib.run(other)
  # Half a file would be taken for a result.
  assert not glob.glob(os.path.join(sweep.results, '*.new'))
  result = sweep_lib.read(sweep)[-1]
  assert result['settings']['model'] == {
      'dim': 8, 'titans': {'chunk': 32, 'projection_chunk': 32},
  }
  for name in ('seconds', 'cpu_seconds', 'date', 'data', 'machine'):
    assert name in result
  assert {'jax', 'python', 'device', 'processor'} <= set(result['machine'])


def test_the_readme_is_made_of_the_results(small):
  """If it fails, a table says what no file does."""
  _, sweep = small
  assert sweep_lib.render(sweep) == 'No results yet.'
  while not sweep_lib.run(sweep):
    pass
  sweep_lib.write_readme(sweep)
  text = pathlib.Path(sweep.readme).read_text()
  assert text.startswith('# Mine\n') and text.endswith('\nafter\n')
  assert '| A | 2 | 5 |' in text
  assert '![plot](results/plot.svg)' in text
  assert (pathlib.Path(sweep.results) / 'plot.svg').exists()
  sweep_lib.write_readme(sweep)
  assert pathlib.Path(sweep.readme).read_text() == text
  # A number changed by hand is not what is rendered.
  edited = text.replace('| A | 2 | 5 |', '| A | 9 | 5 |')
  assert edited != sweep_lib.replaced(edited, sweep_lib.render(sweep))


@pytest.mark.parametrize('readme', EXPERIMENTS, ids=os.path.dirname)
def test_tables_are_rendered_from_their_results(readme, monkeypatch):
  """If it fails, a README's table was edited by hand, or is out of date:

    python -m hope_jax.evals.sweep --config=experiments/NAME.py --render
  """
  monkeypatch.chdir(ROOT)
  name = os.path.basename(os.path.dirname(readme))
  sweep = sweep_config.load(f'experiments/{name}.py')
  text = pathlib.Path(readme).read_text(encoding='utf-8')
  assert text.count(sweep_lib.BEGIN) == text.count(sweep_lib.END) == 1
  assert text == sweep_lib.replaced(text, sweep_lib.render(sweep))
  for figure, svg in sweep_config.TASKS[sweep.task].figures(
      sweep_lib.read(sweep)
  ).items():
    path = pathlib.Path(sweep.results, f'{figure}.svg')
    assert path.read_text(encoding='utf-8') == svg + '\n'


@pytest.mark.parametrize('readme', EXPERIMENTS, ids=os.path.dirname)
def test_results_are_of_the_experiment_as_it_stands(readme, monkeypatch):
  """If it fails, a table shows runs of other settings than the file's."""
  monkeypatch.chdir(ROOT)
  name = os.path.basename(os.path.dirname(readme))
  sweep = sweep_config.load(f'experiments/{name}.py')
  found = sweep_lib.read(sweep)
  assert found
  for result in found:
    cell = sweep_config.Cell(result['row'], result['column'], result['seed'])
    assert sweep_lib.is_done(sweep, cell)


def test_a_cell_that_diverges_does_not_stop_the_others(small, monkeypatch):
  """If it fails, a sweep ends for good at the first loss that is no number."""
  calls, sweep = small
  calls += [None] * 3  # no Ctrl-C
  task = sweep_config.TASKS['count']

  def diverges(config, column, sweep):
    if column == 'x' and config.model.architecture == 'lstm':
      raise FloatingPointError('loss is nan at step 3')
    return task.run(config, column, sweep)

  monkeypatch.setitem(
      sweep_config.TASKS, 'count', task._replace(run=diverges)
  )
  with pytest.raises(FloatingPointError, match='B, x, seed 7: loss is nan'):
    sweep_lib.run(sweep)
  assert len(sweep_lib.read(sweep)) == 3


def test_rows_that_would_share_a_file_are_named():
  """If it fails, one row's results are shown as another's."""
  for names in (('A', 'A'), ('A (x)', 'A x')):
    with pytest.raises(ConfigError, match='share the names of their files'):
      sweep_config.SweepConfig(
          task='mqar', results='r', rows=tuple({'name': n} for n in names)
      )


def test_a_readme_without_markers_is_left_alone():
  """If it fails, results of elsewhere end up in a README of something else."""
  assert sweep_lib.replaced('# Mine\n', 'x') == '# Mine\n'


def test_mistakes_are_named(capsys):
  """If it fails, a typing error costs a traceback, or an hour."""
  path, mqar, mad = (
      str(ROOT / 'experiments' / f'{name}.py')
      for name in ('formal_languages', 'mqar', 'mad')
  )
  for args, complaint in (
      ([], 'wanted: --config='),
      ([f'--config={path}', '--workdir=x'], 'wanted: --config='),
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
    assert sweep_lib.main(args) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ') and complaint in error


@pytest.mark.parametrize(
    ('name', 'row', 'complaint'),
    [
        ('mqar', 'DeltaNet 32', 'before anything was measured'),
        ('ablation', 'Hope', 'compares runs of equal length'),
    ],
)
def test_a_run_without_time_is_no_result(
    tmp_path, capsys, name, row, complaint
):
  """If it fails, what a slow machine made of a cell is shown as the cell."""
  path = str(ROOT / 'experiments' / f'{name}.py')
  assert sweep_lib.main([
      f'--config={path}:tiny', f'--config.results={tmp_path}/results',
      f'--config.rows_run={row},', '--config.base.train.steps=9',
      '--config.base.train.log_every=5',
      '--config.base.train.max_seconds=0.001',
  ]) == 2
  assert complaint in capsys.readouterr().err
  assert not glob.glob(f'{tmp_path}/results/*.json')


def test_help_shows_what_can_be_asked_for(capsys):
  """If it fails, a stranger is told that he is wrong, and not what is right."""
  assert sweep_lib.main(['--help']) == 0
  assert '--config.rows_run=' in capsys.readouterr().out


@pytest.mark.parametrize('task', needles.TASKS)
def test_texts_of_the_tiny_needles_hold_theirs(task):
  """If it fails, the first try of a reader ends in the middle."""
  sweep = sweep_config.load(str(ROOT / 'experiments' / 'needles.py:tiny'))

  def encode(text):
    return list(text.encode())

  assert task in sweep.columns
  lengths = sweep.lengths
  needles.pack(
      task, 0, sweep.counts['train'], length=lengths['train'], encode=encode
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
  assert sweep_lib.main(args) == 0
  (file,) = (tmp_path / 'runs' / 'mine_py_ones').glob('*.json')
  result = json.loads(file.read_text())
  assert result['column'] == 'ones'
  # Whatever comes, all is legal: learned before the last step.
  assert result['scores']['bin0'] == result['scores']['bin1'] == 1
  assert result['scores']['stopped'] == 'until'
  assert list(result['scores']['eigenvalues']) == ['1']
  assert sweep_lib.main([*args, '--render']) == 0


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
  assert sweep_lib.main(args) == 0
  (file,) = (tmp_path / 'runs' / 'mine').glob('*.json')
  scores = json.loads(file.read_text())['scores']
  assert {'bin0', 'bin1', 'steps'} <= set(scores)
  assert 'bin2' not in scores
  # Other strings in the same folder are another result.
  (tmp_path / 'mine' / 'test_50.src').write_text('0 0 1\n')
  assert sweep_lib.main(args) == 2


def test_the_tiny_form_of_the_ablation(tmp_path):
  """If it fails, a row of Table 6 cannot be run."""
  path = str(ROOT / 'experiments' / 'ablation.py')
  rows = [cell.row for cell in sweep_config.cells(sweep_config.load(path))]
  assert len(rows) == 8 * 3
  assert sweep_lib.main([
      f'--config={path}:tiny', f'--config.results={tmp_path}/results',
      '--config.rows_run=without DGD',
  ]) == 0
  (file,) = (tmp_path / 'results').glob('*.json')
  result = json.loads(file.read_text())
  assert 1 < result['scores']['perplexity'] < 512
  assert result['settings']['model']['titans']['dgd'] is False
