"""A workdir: one writer, one configuration, and what else its user keeps."""

import errno
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import orbax.checkpoint as ocp
import pytest

from hope_jax import config as config_lib
from hope_jax import run
from hope_jax.config import Config, ConfigError
from hope_jax.files import Lock
from hope_jax.models import factory
from hope_jax.train import checkpoint, loop
from tests import standin

# What Orbax abandons at an error is reported to the host, here pytest.
pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning'
)
MODEL = standin.Standin()


def train(workdir, batches=None, **groups):
  config = standin.make_config(workdir=workdir, **groups)
  batches = batches or standin.Batches()
  return loop.train(MODEL, batches, config, progress=False)


def one_line(error):
  text = str(error.value)
  assert '\n' not in text
  return text


def about_of(workdir, step):
  return workdir / 'checkpoints' / str(step) / 'about' / 'metadata'


@pytest.fixture
def trained(tmp_path):
  """A run of two steps, a checkpoint each."""
  train(tmp_path, train={'steps': 2, 'checkpoint_every': 1})
  return tmp_path


def test_the_second_writer_is_refused(tmp_path):
  """If it fails, two runs delete each other's records and checkpoints.

  The second comes while the first is at step 3, and changes nothing.
  """
  refused = []

  class Twice(standin.Batches):

    def __next__(self):
      if self._position == 2:
        with pytest.raises(ConfigError) as error:
          train(tmp_path)
        refused.append(one_line(error))
      return super().__next__()

  result = train(tmp_path, Twice())
  assert f'is being written to by pid {os.getpid()}' in refused[0]
  assert int(result.state.step) == 6
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 6
  assert int(train(tmp_path).state.step) == 6


def test_a_crash_leaves_no_lock(tmp_path):
  """If it fails, a killed run has to be unlocked by hand."""
  path = str(tmp_path / '.lock')
  code = (
      'import os, signal, sys; from hope_jax.files import Lock;'
      ' lock = Lock(sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)'
  )
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', code, path], cwd=root)
  assert done.returncode == -signal.SIGKILL
  Lock(path).release()


def test_a_refused_run_lets_go(trained):
  """If it fails, a typo locks the workdir for the rest of a notebook."""
  with pytest.raises(ConfigError, match='another config'):
    train(trained, data={'seed': 5})
  train(trained, train={'steps': 2})


@pytest.mark.parametrize('path', ['gs://bucket/r', 'file:///r', 's3://b/r'])
def test_a_workdir_that_is_no_folder(path, monkeypatch, tmp_path):
  """If it fails, a remote address becomes a folder './gs:' beside the user."""
  monkeypatch.chdir(tmp_path)
  for ask in (
      lambda: Config(workdir=path),
      lambda: run.load('tiny', workdir=path),
      lambda: run.load(workdir=path),
      lambda: run.load('tiny', {'workdir': path}),
  ):
    with pytest.raises(ConfigError) as error:
      ask()
    assert path in one_line(error) and 'mounted' in one_line(error)
  assert os.listdir(tmp_path) == []


def test_home(monkeypatch, tmp_path):
  """If it fails, ~/r becomes a folder './~' beside the user."""
  monkeypatch.setenv('HOME', str(tmp_path))
  config = run.load('tiny', workdir='~/r')
  assert config.workdir == str(tmp_path / 'r')
  assert Config(workdir='~/r').workdir == str(tmp_path / 'r')
  path = pathlib.Path('~/r')
  assert run.load('tiny', workdir=path).workdir == config.workdir
  with pytest.raises(ConfigError, match="'./~nobody-of-this-name/r'"):
    Config(workdir='~nobody-of-this-name/r')
  assert Config(workdir='./~r').workdir == './~r'


def test_what_a_user_keeps_beside_checkpoints(trained, monkeypatch):
  """If it fails, a save that fails deletes what the user has put there."""
  folder = trained / 'checkpoints'
  for name in ('best', '7.old', '3.orbax-checkpoint-tmp.mine', '٣', '007'):
    (folder / name).mkdir()
    (folder / name / 'precious').write_text('x')
  (folder / '9').write_text('a file')
  kept = sorted(os.listdir(folder))
  real = ocp.CheckpointManager.save

  def fail(self, step, **options):
    (folder / f'{step}.orbax-checkpoint-tmp').mkdir()
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
  with pytest.raises(ConfigError) as error:
    train(trained, train={'steps': 3})
  assert 'no space left on the disk; checkpoints kept: 1, 2' in one_line(error)
  assert sorted(os.listdir(folder)) == kept
  monkeypatch.setattr(ocp.CheckpointManager, 'save', real)
  # What a run that was killed has left goes when the next one starts.
  (folder / '3.orbax-checkpoint-tmp').mkdir()
  train(trained, train={'steps': 3})
  assert set(os.listdir(folder)) == {*kept, '3'} - {'1'}
  assert (folder / 'best' / 'precious').read_text() == 'x'


def test_a_file_too_large(trained):
  """If it fails, a limit of file sizes ends in pages of traces."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
  try:
    with pytest.raises(ConfigError) as error:
      train(trained, train={'steps': 3})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert 'file too large for the limit of this process' in one_line(error)
  assert sorted(os.listdir(trained / 'checkpoints')) == ['1', '2']
  assert int(train(trained, train={'steps': 3}).state.step) == 3


def digits(text):
  """Yields `text` with a digit of the data's position, and more, changed."""
  record = json.loads(text)
  changes = {
      'data': [{'position': 1}], 'step': 1, 'processes': 2,
      'versions': {'jax': '0'},
  }
  for name, value in changes.items():
    yield json.dumps(record | {name: value})
  yield json.dumps(record | {'data': record['data'] * 2})
  sums = {k: v for k, v in record['checksums'].items() if k != 'record'}
  yield json.dumps(record | {'checksums': sums})
  yield text[: len(text) // 2]
  yield 'null'


def test_a_changed_record(trained):
  """If it fails, a run goes on with other data, and nobody notices."""
  path = about_of(trained, 2)
  text = path.read_text()
  assert json.loads(text)['data'] == [{'position': 2}]
  for changed in digits(text):
    path.write_text(changed)
    with pytest.raises(ConfigError) as error:
      train(trained, train={'steps': 3})
    assert 'checkpoints/2 is damaged' in one_line(error)
    assert '--checkpoint_step=1' in one_line(error)
  path.write_text(text)
  assert int(train(trained, train={'steps': 3}).state.step) == 3


def test_a_place_in_the_data_has_a_range(trained):
  """If it fails, a record without a checksum ends in a trace, or anywhere."""
  path = about_of(trained, 2)
  of_old = json.loads(path.read_text())
  del of_old['checksums']['record'], of_old['step']
  values = -1, 10**30, 1.5, None, '2', [], {}, float('nan'), True
  for place in (*({'position': value} for value in values), None, 3):
    path.write_text(json.dumps(of_old | {'data': [place]}))
    with pytest.raises(ConfigError, match='checkpoint 2 .* no place in this'):
      train(trained, train={'steps': 3})
  path.write_text(json.dumps(of_old))
  assert int(train(trained, train={'steps': 3}).state.step) == 3


def test_a_checkpoint_under_another_number(trained):
  """If it fails, a copied folder counts steps that were never made."""
  (trained / 'checkpoints' / '2').rename(trained / 'checkpoints' / '5')
  with pytest.raises(ConfigError, match='record is that of step 2'):
    train(trained)


@pytest.mark.parametrize(
    ('field', 'value', 'said'),
    [
        ('model.rope_base', 777.0, '10000.0 in checkpoint 2 and 777.0 in'),
        ('model.heads', 2, '4 in checkpoint 2 and 2 in'),
        ('data.holdout', 0.5, '0.05 in checkpoint 2 and 0.5 in'),
        ('train.seed', 3, '0 in checkpoint 2 and 3 in'),
    ],
)
def test_a_config_that_was_edited(trained, monkeypatch, field, value, said):
  """If it fails, eval and generate give numbers of a model never trained."""
  monkeypatch.setattr(factory, 'language_model', standin.Standin)
  path = trained / 'config.json'
  values = json.loads(path.read_text())
  group, name = field.split('.')
  old = values[group][name]
  values[group][name] = value
  path.write_text(json.dumps(values))
  edited = config_lib.from_dict(values)
  for ask in (
      lambda: run.restore(edited),
      lambda: loop.train(MODEL, standin.Batches(), edited, progress=False),
  ):
    with pytest.raises(ConfigError) as error:
      ask()
    assert f'{field} is {said}' in one_line(error)
    assert 'damaged' not in one_line(error)
  # What may change within a run may change there.
  values[group][name] = old
  path.write_text(json.dumps(values | {'mesh': {'data': 1, 'fsdp': 1}}))
  run.restore(checkpoint.load_config(str(trained)))


def test_versions_know_other_fields(tmp_path):
  """If it fails, no run outlives a release; or an option's change is missed."""
  config = standin.make_config(
      workdir=tmp_path, optimizer={'name': 'm3', 'options': {'period': 2}}
  )
  recorded = config_lib.to_dict(config)
  checkpoints = checkpoint.Checkpoints(config)
  del recorded['model']['rope_base']
  recorded['model']['of_old'] = 1
  checkpoints._require_recorded(json.loads(json.dumps(recorded)), 2)
  recorded['optimizer']['options'] = {}
  with pytest.raises(ConfigError, match='options.period is not given in'):
    checkpoints._require_recorded(recorded, 2)


def test_lines_that_are_no_records_are_told_once(trained, capsys):
  """If it fails, records vanish unsaid."""
  with open(trained / 'metrics.jsonl', 'a') as file:
    file.write('null\n{"step": 9, "spl')
  train(trained, train={'steps': 3})
  said = capsys.readouterr().err
  assert said.count('are no record of a step are left out: 2') == 1
  train(trained, train={'steps': 3})
  assert 'left out' not in capsys.readouterr().err
  (trained / 'metrics.jsonl').unlink()
  (trained / 'metrics.jsonl').mkdir()
  with pytest.raises(ConfigError, match='Is a directory'):
    train(trained, train={'steps': 4})


def test_an_interrupted_save_leaves_nothing(trained, monkeypatch):
  """If it fails, Ctrl-C in a notebook, twice, leaves half a checkpoint."""
  folder = trained / 'checkpoints'

  def interrupted(self, step, **options):
    (folder / f'{step}.orbax-checkpoint-tmp').mkdir()
    raise KeyboardInterrupt

  monkeypatch.setattr(ocp.CheckpointManager, 'save', interrupted)
  with pytest.raises(KeyboardInterrupt):
    train(trained, train={'steps': 3})
  assert sorted(os.listdir(folder)) == ['1', '2']
