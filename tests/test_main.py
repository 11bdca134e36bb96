"""The command line, from a user's side; the model is the stand-in."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import hope_jax
from hope_jax import commands, run
from hope_jax import main as main_lib
from hope_jax.models import factory
from tests import standin

ROOT = pathlib.Path(__file__).parents[1]
TINY = str(ROOT / 'experiments' / 'tiny.py')


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
  monkeypatch.setattr(factory, 'language_model', standin.Standin)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Forty short texts, so that some are held out."""
  folder = tmp_path_factory.mktemp('corpus')
  for i in range(40):
    (folder / f'{i}.txt').write_text(f'text number {i} of a corpus. ' * 8)
  return folder


def train_args(corpus, workdir, *more):
  return [
      'train', f'--config={TINY}', f'--workdir={workdir}',
      '--config.data.source=files', f'--config.data.path={corpus}/*.txt',
      '--config.data.holdout=0.2', '--config.data.sequence_length=32',
      '--config.train.steps=4', '--config.train.log_every=1',
      '--config.train.checkpoint_every=2', '--config.optimizer.warmup_steps=1',
      *more,
  ]


@pytest.fixture(scope='module')
def trained(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('main') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(factory, 'language_model', standin.Standin)
    assert main_lib.main(train_args(corpus, workdir)) == 0
  return workdir


def losses(workdir):
  """Returns (step, split, loss) of each record."""
  records = map(json.loads, (workdir / 'metrics.jsonl').open())
  return [(r['step'], r['split'], r['loss']) for r in records]


def fails(args, capsys):
  """Returns the one line that `args` are answered with."""
  assert main_lib.main(args) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  (line,) = captured.err.splitlines()
  assert line.startswith('error: ')
  return line


def test_train_eval_generate(trained, corpus, capsys):
  """If it fails, the three commands do not fit together."""
  step, split, loss = losses(trained)[-1]
  assert (step, split) == (4, 'heldout')
  assert main_lib.main(['eval', f'--workdir={trained}']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['loss'] == pytest.approx(loss, rel=1e-6)
  args = ['generate', f'--workdir={trained}', '--tokens=5', '--temperature=0']
  assert main_lib.main([*args, '--prompt=text']) == 0
  assert capsys.readouterr().out.startswith('text')


def test_eval_on_another_text(trained, tmp_path, capsys):
  """If it fails, a model can be measured on its own corpus only."""
  for i in range(40):
    (tmp_path / f'{i}.txt').write_text('entirely different 0123456789 ' * 8)
  path = f'--config.data.path={tmp_path}/*.txt'
  assert main_lib.main(['eval', f'--workdir={trained}']) == 0
  assert main_lib.main(['eval', f'--workdir={trained}', path]) == 0
  own, other = map(json.loads, capsys.readouterr().out.splitlines())
  assert own['loss'] != other['loss']


def test_checkpoint_step(trained, capsys):
  """If it fails, only the latest checkpoint can be looked at."""
  args = ['eval', f'--workdir={trained}']
  assert main_lib.main([*args, '--checkpoint_step=2']) == 0
  assert main_lib.main([*args, '--checkpoint_step', '4']) == 0
  early, late = map(json.loads, capsys.readouterr().out.splitlines())
  assert late['loss'] < early['loss']
  assert 'there are: 2, 4' in fails([*args, '--checkpoint_step=3'], capsys)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['train', '--config.train.stepz=3'],
         "unknown field 'train.stepz'; did you mean 'steps'?"),
        (['train', '--config.modle.dim=3'], "did you mean 'model'?"),
        (['train', '--config.train.steps=many'],
         "train.steps must be int; got 'many'"),
        (['train', '--config.train.steps.x=1'], "'steps' is a value"),
        (['train', '--config.train.steps'], 'needs a value'),
        (['train', '--config.model.titans.chunk=7'], 'must divide'),
        (['train', '--config.model.continuum.periods=2,3'], 'divide the next'),
        (['train', '--config.mesh.data=64'], 'needs 64 devices'),
        (['train', '--config.optimizer.warmup_steps=99'], 'warmup_steps'),
        (['train', '--config.model.vocab_size=7'],
         'add --config.model.vocab_size=256'),
        (['train', '--config.data.source=files', '--config.data.path=/no/*'],
         '/no/*'),
        (['train', '--wrokdir=x'], 'wrokdir'),
        (['train', '--checkpoint_step=one'], 'checkpoint_step'),
        ([], 'a command is wanted, one of train, eval, generate'),
        (['trian'], "no command 'trian'; did you mean 'train'?"),
        (['xyzzy'], "no command 'xyzzy'; there are: train, eval, generate"),
        (['train', 'extra'], "train takes flags only, as --NAME=VALUE; got"
         " 'extra' as well"),
        (['train', '--config.rows=1'], "'rows' is a field of a study, which"
         " another command runs: study --config=FILE"),
        (['train', '--prompt=x'], 'train does not read --prompt'),
        (['train', '--config.data.text_field=None'], 'takes no None'),
    ],
)
def test_bad_arguments(args, message, tmp_path, capsys):
  """If it fails, a slip of the user's is answered with a trace."""
  args = [*args, f'--config={TINY}', f'--workdir={tmp_path / "run"}']
  assert message in fails(args, capsys)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_no_config(tmp_path, capsys):
  """If it fails, a missing or broken experiment file ends in a trace."""
  assert '--config=' in fails(['train'], capsys)
  assert 'no file' in fails(['train', '--config=nowhere.py'], capsys)
  broken = tmp_path / 'broken.py'
  broken.write_text('def get_config():\n  return 1 / 0')
  line = fails(['train', f'--config={broken}'], capsys)
  assert 'ZeroDivisionError' in line
  line = fails(['eval', f'--workdir={tmp_path}'], capsys)
  assert 'no run in workdir' in line
  assert 'study --config=mqar:tiny' in fails(['train', '--config=mqar:tiny'],
                                             capsys)


def test_study_of_what_cannot_be(tmp_path, capsys):
  """If it fails, a task's complaint of the user's numbers ends in a trace."""
  args = ['study', '--config=mqar:tiny', f'--workdir={tmp_path}']
  assert main_lib.main([*args, '--config.columns=40']) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith('error: length must be even and at least 4 pairs')
  assert 'study needs --config' in fails(['study'], capsys)


def test_workdir_of_another_config(trained, corpus, capsys):
  """If it fails, a second experiment overwrites the first."""
  files = {p: p.read_bytes() for p in trained.rglob('*') if p.is_file()}
  args = train_args(corpus, trained, '--config.data.seed=5')
  assert 'data.seed is 0 there and 5 here' in fails(args, capsys)
  assert files == {p: p.read_bytes() for p in trained.rglob('*') if p.is_file()}


def test_damaged_checkpoint(corpus, tmp_path, capsys):
  """If it fails, damage is answered with pages of a storage library's state.

  All arrays at once, since reads that are given up complain from threads.
  """
  workdir = tmp_path / 'run'
  args = train_args(corpus, workdir)
  assert main_lib.main(args) == 0
  for path in (workdir / 'checkpoints' / '4').rglob('d/*'):
    path.unlink()
  before = losses(workdir)
  capsys.readouterr()
  assert '--checkpoint_step=2' in fails(args, capsys)
  # The way out, through the real data: the same batches, the same losses.
  assert main_lib.main([*args, '--checkpoint_step=2']) == 0
  assert (workdir / 'set_aside' / '4').is_dir()
  assert losses(workdir) == before


def test_full_disk(corpus, small_disk, capfd):
  """If it fails, a full disk costs checkpoints, or the line that says so.

  A checkpoint at every step, none ever dropped, until nothing more fits.
  """
  args = train_args(
      corpus, small_disk / 'run', '--config.train.steps=500',
      '--config.train.checkpoint_every=1', '--config.train.eval_every=500',
      '--config.train.keep_checkpoints=500',
  )
  assert main_lib.main(args) == 2
  # The progress bar, then one line.
  line = capfd.readouterr().err.split('\r')[-1].strip().splitlines()[-1]
  assert 'no space left on the disk' in line
  steps = sorted(map(int, os.listdir(small_disk / 'run' / 'checkpoints')))
  assert len(steps) > 2
  assert f'{steps[-2]}, {steps[-1]}' in line
  assert main_lib.main(['eval', f'--workdir={small_disk / "run"}']) == 0


def test_help(capsys):
  """If it fails, --help does not say what there is."""
  assert main_lib.main(['--help']) == 0
  text = capsys.readouterr().out
  for word in (*main_lib.COMMANDS, '--config.model.titans.', 'Ctrl-C', 'chunk=',
               'and it is run', '--help_config'):
    assert word in text
  for command, entry in main_lib.COMMANDS.items():
    assert main_lib.main([command, '--help']) == 0
    text = capsys.readouterr().out
    assert [f for f in entry.flags if f'--{f}:' not in text] == []
    assert max(map(len, text.splitlines())) <= 80
  assert main_lib.main(['--help_config=model.continuum']) == 0
  text = capsys.readouterr().out
  assert 'periods=(1, 4, 16)' in text and 'titans' not in text
  for args in (['--help_config', 'model.continuum'],
               ['train', '--help_config', 'model.continuum']):
    assert main_lib.main(args) == 0
    assert capsys.readouterr().out == text
  # A group that has the name of a command.
  assert main_lib.main(['--help_config', 'train']) == 0
  assert '--config.model.' not in capsys.readouterr().out
  assert main_lib.main(['study', '--help_config', 'rows']) == 0
  assert 'rows' in capsys.readouterr().out
  assert main_lib.main(['--help_config=model.continum']) == 2
  assert "did you mean 'model.continuum'?" in capsys.readouterr().err


def test_help_into_a_pipe_that_closes():
  """If it fails, `--help | head` ends in a trace."""
  done = subprocess.run(
      f'{sys.executable} -m hope_jax.main --help | head -n 1', shell=True,
      cwd=ROOT, text=True, capture_output=True, check=True,
  )
  assert done.stdout.startswith('Train') and done.stderr == ''


def test_commands_exist():
  """If it fails, a command that is advertised ends in an ImportError."""
  for entry in main_lib.COMMANDS.values():
    assert callable(main_lib._resolve(entry.function))


@pytest.mark.parametrize(
    ('code', 'absent'),
    [
        (
            "from hope_jax import main; main.main(['--help'])",
            ('jax', 'flax', 'orbax', 'grain', 'optax'),
        ),
        (
            "from hope_jax import main; main.main(['train', '--helpfull'])",
            ('jax', 'flax', 'orbax', 'grain', 'optax'),
        ),
        (
            "from hope_jax import main; assert main.main(['trian']) == 2",
            ('jax', 'flax', 'orbax', 'grain', 'optax'),
        ),
        ('from hope_jax import optim', ('flax', 'orbax', 'grain')),
        ('from hope_jax import dgd_recurrence', ('flax', 'orbax', 'grain')),
        ('from hope_jax import Config', ('jax', 'flax', 'orbax', 'grain')),
    ],
)
def test_imports_wait_until_they_are_needed(code, absent):
  """If it fails, a word of help costs the seconds that JAX takes to come up."""
  code += f'\nimport sys; print("loaded:", *({set(absent)} & set(sys.modules)))'
  done = subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, text=True, check=True,
      capture_output=True,
  )
  assert done.stdout.splitlines()[-1] == 'loaded:'


def test_the_face(corpus, tmp_path):
  """If it fails, a notebook cannot do what the command line does."""
  assert set(hope_jax.__all__) <= set(dir(hope_jax))
  for name in hope_jax.__all__:
    assert getattr(hope_jax, name) is not None
  with pytest.raises(AttributeError, match='nothing_of_the_kind'):
    getattr(hope_jax, 'nothing_of_the_kind')  # noqa: B009
  config = hope_jax.load(TINY, {
      'data.source': 'files', 'data.path': f'{corpus}/*.txt',
      'data.holdout': 0.2, 'data.sequence_length': 32, 'train.steps': 4,
      'train.checkpoint_every': 2, 'optimizer.warmup_steps': 1,
      'workdir': str(tmp_path / 'run'),
  })
  assert isinstance(config, hope_jax.Config)
  result = hope_jax.train(config, progress=False)
  assert result.stopped == 'done' and int(result.state.step) == 4
  assert run.evaluate(config)['loss'] == result.history[-1]['loss']


def test_going_on_leaves_out_the_old_checkpoint():
  """If it fails, the printed command starts from the same old step again."""
  for flag in (['--checkpoint_step=2'], ['--checkpoint_step', '2']):
    line = commands.again(['train', *flag, '--config=a b.py'])
    assert line.endswith("-m hope_jax.main train '--config=a b.py'")


def test_ctrl_c(corpus, tmp_path, capsys):
  """If it fails, Ctrl-C loses work, or leaves the user without a way on.

  A real signal to a real process; then the same command again.
  """
  workdir = tmp_path / 'run'
  script = (
      'import sys\nfrom hope_jax import main\n'
      'from hope_jax.models import factory\nfrom tests import standin\n'
      'factory.language_model = standin.Standin\n'
      'sys.exit(main.main(sys.argv[1:]))\n'
  )
  args = train_args(
      corpus, workdir, '--config.train.steps=1000000',
      '--config.train.checkpoint_every=1000000',
  )
  process = subprocess.Popen(
      [sys.executable, '-c', script, *args], cwd=ROOT, text=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE,
  )
  metrics = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    if metrics.exists() and metrics.stat().st_size:
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 130, errors[-2000:]
  assert '-m hope_jax.main train' in errors.splitlines()[-1]
  assert 'to go on' in errors.splitlines()[-2]
  (step,) = map(int, os.listdir(workdir / 'checkpoints'))
  capsys.readouterr()
  more = f'--config.train.steps={step + 1}'
  assert main_lib.main([*args, more]) == 0
  assert f'step {step + 1} of' in capsys.readouterr().err
