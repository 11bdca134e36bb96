"""Signals, dead streams and limits, to real processes: one line or silence."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hope_jax import console, interrupts
from hope_jax import main as main_lib
from tests import runs

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp('texts') / 'corpus')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('compiled')


def lines(text):
  """The lines on the screen in the end: a bar is drawn over itself."""
  return [line.split('\r')[-1] for line in text.splitlines() if line.strip()]


def main(*args, shell=''):
  """Runs the command line, in a shell if there is more to it."""
  command = f'{sys.executable} -m hope_jax.main {" ".join(args)} {shell}'
  return subprocess.run(
      ['bash', '-c', command], cwd=ROOT, text=True, capture_output=True
  )


def test_a_signal_in_a_save_is_noticed_at_once(corpus, cache, tmp_path):
  """If it fails, a lost terminal costs work, or a step and a save too many."""
  args = runs.train_args(corpus, tmp_path / 'run', checkpoint_every=1)
  process = runs.start(args, cache)
  runs.wait_for(process, lambda: runs.saving(tmp_path / 'run', 3))
  at = max(
      int(name.partition('.')[0])
      for name in os.listdir(tmp_path / 'run' / 'checkpoints')
  )
  process.send_signal(signal.SIGHUP)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 129, errors[-2000:]
  steps = sorted(map(int, os.listdir(tmp_path / 'run' / 'checkpoints')))
  assert steps[-1] in (at, at + 1)  # The save may have ended before.
  said = lines(errors)
  assert sum('SIGHUP: stopping once this step' in line for line in said) == 1
  assert 'stopped (SIGHUP) and saved' in said[-2]


@pytest.mark.parametrize(
    ('first', 'second', 'code'),
    [('SIGTERM', 'SIGINT', 130),
     # The same again in the other order.
     pytest.param('SIGINT', 'SIGTERM', 143, marks=pytest.mark.slow)],
)
def test_the_second_signal_stops_at_once(
    corpus, cache, tmp_path, first, second, code
):
  """If it fails, whoever is in a hurry gets pages of traces, and rubbish."""
  args = runs.train_args(corpus, tmp_path / 'run', checkpoint_every=1)
  process = runs.start(args, cache)
  runs.wait_for(process, lambda: runs.saving(tmp_path / 'run', 3))
  process.send_signal(signal.Signals[first])
  time.sleep(0.005)
  process.send_signal(signal.Signals[second])
  _, errors = process.communicate(timeout=60)
  if process.returncode == interrupts.exit_code(first):
    return  # The second came after the run had ended by the first.
  assert process.returncode == code, errors[-2000:]
  assert 'Traceback' not in errors
  assert lines(errors)[-1] == f'{second}: stopped; nothing more is saved'
  left = os.listdir(tmp_path / 'run' / 'checkpoints')
  assert [name for name in left if not name.isdigit()] == []


def test_nobody_listens_any_more(corpus, cache, tmp_path):
  """If it fails, a dead `tee` or a lost `ssh` ends a run, unsaved."""
  args = runs.train_args(corpus, tmp_path / 'run', steps=30)
  reader, writer = os.pipe()
  process = runs.start(args, cache, stderr=writer)
  os.close(writer)
  os.read(reader, 1)  # The bar has begun.
  os.close(reader)
  process.communicate(timeout=120)
  assert process.returncode == 0
  assert (tmp_path / 'run' / 'checkpoints' / '30').is_dir()


@pytest.mark.parametrize('seconds', [0.3, 1.0])
def test_ctrl_c_in_the_first_second(seconds):
  """If it fails, Ctrl-C while libraries are imported gives a page of traces."""
  process = subprocess.Popen(
      [sys.executable, '-m', 'hope_jax.main', 'eval', '--workdir=nowhere'],
      cwd=ROOT, text=True, stderr=subprocess.PIPE,
  )
  # From the first lines of ours on: before them there is Python's own start.
  runs.wait_for(process, lambda: catches(process.pid, signal.SIGTERM))
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode in (130, 2)
  assert len(lines(errors)) <= 1, errors


def catches(pid, number):
  """Whether a process has a handler of its own for a signal."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  caught = int(status.partition('SigCgt:')[2].split()[0], 16)
  return caught >> number - 1 & 1


@pytest.mark.slow  # Compiles a whole Hope, twice, with nothing kept.
def test_ctrl_c_while_an_evaluation_compiles(tmp_path):
  """If it fails, the process crashes in XLA's threads, and says -11."""
  workdir = tmp_path / 'run'
  small = ['--config=tiny', f'--workdir={workdir}', '--config.train.steps=1',
           '--config.optimizer.warmup_steps=1']
  assert main('train', *small).returncode == 0
  process = subprocess.Popen(
      [sys.executable, '-m', 'hope_jax.main', 'eval', f'--workdir={workdir}'],
      cwd=ROOT, text=True, stderr=subprocess.PIPE,
      env=dict(os.environ, JAX_LOG_COMPILES='1'),
  )
  assert process.stderr
  for line in process.stderr:
    if 'Compiling jit(_sums)' in line:
      break
  time.sleep(1)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 130
  assert lines(errors)[-1] == 'SIGINT: stopped; nothing more is saved'


@pytest.mark.parametrize(
    ('shell', 'code', 'said'),
    [
        ('> /dev/full', 2,
         ['error: standard output: no space left on the disk']),
        ('>&-', 2, ['error: standard output: Bad file descriptor']),
        ('| true; exit ${PIPESTATUS[0]}', 141, []),
        ('2>&- > /dev/full', 2, []),
    ],
)
def test_an_output_that_takes_nothing(shell, code, said):
  """If it fails, `| true` and a full device are answered with traces."""
  done = main('--help', shell=shell)
  assert (done.returncode, lines(done.stderr)) == (code, said)


def test_a_closed_stderr_takes_no_other_file():
  """If it fails, what is meant for people is written into another file."""
  done = main('train', '--workdir=x', '--wrokdir=y', shell='2>&- <&- >&-')
  assert done.returncode == 2


@pytest.mark.parametrize('limit', [1_500_000, 2_600_000])
def test_less_memory_than_jax_takes(limit):
  """If it fails, a limit of 2.5 GB is answered by a C++ library's abort."""
  done = subprocess.run(
      ['bash', '-c', f'ulimit -v {limit}; {sys.executable} -m hope_jax.main'
       ' train --config=tiny'],
      cwd=ROOT, text=True, capture_output=True,
  )
  assert done.returncode == 2
  (line,) = lines(done.stderr)
  assert 'out of memory' in line and 'ulimit -v' in line


@pytest.mark.slow  # Fills 3 GB.
def test_more_than_the_memory(corpus, cache, tmp_path):
  """If it fails, a model too large ends in pages of traces."""
  args = runs.train_args(corpus, tmp_path / 'run', steps=2)
  args.append('--config.model.vocab_size=16_000_000')
  command = ' '.join([sys.executable, str(ROOT / 'tests' / 'runs.py'), *args])
  done = subprocess.run(
      ['bash', '-c', f'ulimit -v 3500000; {command}'], cwd=ROOT, text=True,
      capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT)),
  )
  assert done.returncode == 2
  (line,) = lines(done.stderr)
  assert 'out of memory; lower data.batch_size' in line


@pytest.mark.parametrize(
    ('error', 'code', 'said'),
    [
        (MemoryError(), 2, 'out of memory; lower'),
        (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating'), 2,
         'out of memory; lower'),
        (RuntimeError("can't start new thread"), 2, 'out of memory; lower'),
        (PermissionError(13, 'Permission denied', '/a/b'), 2,
         'error: /a/b: Permission denied'),
        (OSError(27, 'File too large', '/a/b'), 2,
         'error: /a/b: file too large for the limit of this process'),
        (KeyboardInterrupt(), 130, 'stopped without saving'),
    ],
)
def test_errors_of_the_machine(monkeypatch, capsys, error, code, said):
  """If it fails, what the machine lacks is told as a fault of the code."""
  entry = main_lib.COMMANDS['eval']._replace(function='tests:fails')
  monkeypatch.setitem(main_lib.COMMANDS, 'eval', entry)
  real = main_lib._resolve

  def resolve(name):
    def fail(arguments):
      raise error

    return fail if name == 'tests:fails' else real(name)

  monkeypatch.setattr(main_lib, '_resolve', resolve)
  assert main_lib.main(['eval', '--workdir=x']) == code
  assert said in capsys.readouterr().err.splitlines()[0]
  error = ValueError('a fault of ours')
  with pytest.raises(ValueError, match='a fault of ours'):
    main_lib.main(['eval', '--workdir=x'])


def test_nohup_stays():
  """If it fails, a run under nohup ends with its terminal."""
  code = (
      'import signal; from hope_jax import interrupts;'
      ' signal.signal(signal.SIGHUP, signal.SIG_IGN);'
      ' interrupts.stop_at_once();'
      ' interrupts.Noted().__enter__();'
      ' print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True
  )
  assert done.stdout == 'True\n'


def test_a_program_keeps_its_handlers():
  """If it fails, calling the package takes Ctrl-C from a program."""
  before = [signal.getsignal(s) for s in interrupts._SIGNALS]
  assert main_lib.main(['eval']) == 2
  with interrupts.Noted():
    assert signal.getsignal(signal.SIGINT) != before[0]
  assert [signal.getsignal(s) for s in interrupts._SIGNALS] == before


def test_words_that_nobody_can_take(monkeypatch):
  """If it fails, a progress bar ends a run that its stream has ended for."""
  for stream in (None, open(os.devnull)):
    monkeypatch.setattr(sys, 'stderr', stream)
    console.say('x')
    assert console.stderr.write('abc') == 3
    assert not console.stderr.isatty()
