"""The quickstart, from a user's side; the model is the stand-in, once Hope."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from hope_jax import main as main_lib
from hope_jax import run
from hope_jax.models import factory
from hope_jax.studies import quickstart
from hope_jax.train import loop
from tests import standin

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = str(ROOT / 'experiments' / 'quickstart.py')


@pytest.fixture
def small_model(monkeypatch):
  monkeypatch.setattr(factory, 'language_model', standin.Standin)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Forty texts of 1,000 bytes, so that some are held out."""
  folder = tmp_path_factory.mktemp('corpus')
  for i in range(40):
    (folder / f'{i}.txt').write_text(f'text number {i:02} of a corpus. ' * 34)
  return folder


def args_for(corpus, workdir, *more):
  return [
      'quickstart', f'--config={QUICKSTART}', f'--workdir={workdir}',
      '--config.data.source=files', f'--config.data.path={corpus}/*.txt',
      '--config.data.holdout=0.2', '--config.data.sequence_length=32',
      '--config.train.steps=4', '--config.train.log_every=1',
      '--config.train.eval_every=2', '--config.train.eval_batches=1',
      '--config.optimizer.warmup_steps=1', *more,
  ]


def test_reports_and_goes_on(small_model, corpus, tmp_path, capsys):
  """If it fails, the first command a user types does not end in a report.

  Then once more, longer: the run goes on, and the report is of the whole.
  """
  args = args_for(corpus, tmp_path / 'run')
  assert main_lib.main(args) == 0
  printed = capsys.readouterr().out
  results = json.loads((tmp_path / 'run' / 'report.json').read_text())
  path = tmp_path / 'run' / 'report.html'
  assert path.as_uri() in printed
  bits = f'{results["heldout"]["bits_per_byte"]:.3f}'
  for text in (printed, path.read_text()):
    assert bits in text
    assert f'{results["baselines"]["trigram"]:.3f}' in text
  heldout = results['heldout']
  assert heldout['bytes'] == heldout['of_bytes'] > 5000
  assert results['training']['bytes'] == pytest.approx(4 * 32, rel=0.1)
  assert [r['step'] for r in results['curve'] if r['split'] == 'train'] == [
      1, 2, 3, 4
  ]
  assert results['second_reading']['on']['distances'] == [0, 256, 1024]
  # The stand-in has no memory that could be switched off.
  on, off = (results['second_reading'][key] for key in ('on', 'off'))
  assert on['carried'] == off['carried']
  counts = {level['name']: level['updates'] for level in results['levels']}
  assert (counts['base'], counts['level_1'], counts['level_2']) == (4, 2, 1)

  # What has no numbers is not drawn.
  with (tmp_path / 'run' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 3, "split": "skipped", "total": 1}\n'
               '{"step": 3, "split": "<b>", "bits_per_byte": 1.0}\n'
               '{"step": 3, "split": "train", "bits_per_byte": 1.0}\n'
               '{"step": 4, "split": "heldout", "bits_per_byte": NaN}\n')
  assert main_lib.main([*args, '--config.train.steps=6']) == 0
  results = json.loads((tmp_path / 'run' / 'report.json').read_text())
  assert (results['training']['from_step'], results['training']['step']) == (
      4, 6
  )
  assert len(results['curve']) == 6 + 3
  assert 'since step 4' in ' '.join(capsys.readouterr().out.split())


def test_time_is_up(small_model, corpus, tmp_path, capsys):
  """If it fails, a slow machine gets no report, or one that hides it."""
  args = args_for(
      corpus, tmp_path / 'run', '--config.train.max_seconds=0.001'
  )
  assert main_lib.main(args) == 0
  captured = capsys.readouterr()
  assert 'Time was up' in ' '.join(captured.out.split())
  assert 'to go on' in captured.err


def test_stopped_by_a_signal(small_model, corpus, tmp_path, monkeypatch):
  """If it fails, Ctrl-C is answered with a minute of measuring."""
  train = loop.train
  monkeypatch.setattr(
      loop, 'train', lambda *a, **k: train(*a, **k)._replace(stopped='SIGINT')
  )
  assert main_lib.main(args_for(corpus, tmp_path / 'run')) == 130
  assert not (tmp_path / 'run' / 'report.html').exists()


def test_report_cannot_be_written(small_model, corpus, tmp_path, capsys):
  """If it fails, the end of a long run is a trace."""
  (tmp_path / 'run' / 'report.html').mkdir(parents=True)
  assert main_lib.main(args_for(corpus, tmp_path / 'run')) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith('error: the report could not be written')


def test_limited_time():
  """If it fails, a slow model is measured on nothing, or for ever."""
  assert list(quickstart._for_seconds(iter('abc'), 0.0)) == ['a']
  assert list(quickstart._for_seconds(iter('abc'), 60.0)) == ['a', 'b', 'c']


@pytest.mark.parametrize('form', ['', ':five_minutes', ':hour'])
def test_forms(form):
  """If it fails, the documented command does not start."""
  config = run.load(QUICKSTART + form)
  assert config.workdir.startswith('runs/quickstart')
  assert ('hour' in config.workdir) == ('hour' in form)


def test_unknown_form(capsys):
  """If it fails, a slip in the form's name is answered with a trace."""
  assert main_lib.main(['quickstart', f'--config={QUICKSTART}:day']) == 2
  assert "'hour'" in capsys.readouterr().err


@pytest.mark.slow  # Compiles a whole Hope, its second reading and its sampling.
def test_hope(corpus, tmp_path):
  """If it fails, the parts fit the stand-in and not the model they are for."""
  args = args_for(
      corpus, tmp_path / 'run', '--config.model.dim=16',
      '--config.model.layers=1', '--config.model.heads=2',
      '--config.train.steps=2',
  )
  env = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  done = subprocess.run(
      [sys.executable, '-m', 'hope_jax.main', *args], env=env, check=False,
      capture_output=True, text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  results = json.loads((tmp_path / 'run' / 'report.json').read_text())
  reading = results['second_reading']
  assert reading['on']['carried'] != reading['on']['reset']
  assert reading['on']['first'] == reading['on']['reset']
  assert 0 < results['stability']['max_write/max'] <= 1
  assert len(results['sample']['text']) > 100
