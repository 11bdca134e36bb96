"""The loop: stopping at any moment and going on changes nothing."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from hope_jax.config import ConfigError
from hope_jax.evals import text
from hope_jax.train import checkpoint, loop
from tests import standin

MODEL = standin.Standin()


class Interrupting(standin.Batches):
  """Sends this process a signal, or fails, as it gives batch `at`."""

  def __init__(self, at, what):
    super().__init__()
    self._at, self._what = at, what

  def __next__(self):
    if self._position == self._at - 1:
      if isinstance(self._what, Exception):
        raise self._what
      os.kill(os.getpid(), self._what)
    return super().__next__()


def evaluate(params):
  return text.evaluate(MODEL, params, [next(standin.Batches(seed=7))])


def train(config, batches=None, **options):
  batches = batches or standin.Batches()
  options = {'progress': False} | options
  return loop.train(MODEL, batches, config, evaluate=evaluate, **options)


def comparable(history):
  """The history without what depends on the clock."""
  return [
      {k: v for k, v in record.items() if k != 'tokens_per_second'}
      for record in history
  ]


def assert_same(a, b):
  """Asserts that two results are equal bit for bit."""
  for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state)):
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
  assert comparable(a.history) == comparable(b.history)


def on_disk(config):
  with open(os.path.join(config.workdir, 'metrics.jsonl')) as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope='module')
def uninterrupted():
  return train(standin.make_config())


def test_history(uninterrupted):
  """If it fails, records are missing, or updates of levels are miscounted."""
  steps = [(r['step'], r['split']) for r in uninterrupted.history]
  assert steps == [
      (1, 'train'), (2, 'train'), (3, 'train'), (3, 'heldout'), (4, 'train'),
      (5, 'train'), (6, 'train'), (6, 'heldout'),
  ]
  last = uninterrupted.history[-2]
  assert (last['updates/level_0'], last['updates/level_1']) == (6, 2)
  assert uninterrupted.stopped == 'done'
  assert last['loss'] < uninterrupted.history[0]['loss']


@pytest.mark.parametrize('at', [1, 2, 3, 4, 5])
def test_resume_after_interruption_at_any_step(tmp_path, uninterrupted, at):
  """If it fails, Ctrl-C costs work or changes the result.

  Steps 2 and 4 have a checkpoint anyway, 3 an evaluation; level 1 of period 3
  is in the middle of accumulating at all but 3. Compared bit for bit:
  parameters, optimizer, key, metrics.
  """
  config = standin.make_config(workdir=tmp_path)
  stopped = train(config, Interrupting(at, signal.SIGINT))
  assert stopped.stopped == 'SIGINT'
  assert int(stopped.state.step) == at
  assert checkpoint.Checkpoints(config).steps()[-1] == at
  resumed = train(config)
  assert_same(resumed, uninterrupted)
  assert on_disk(config) == resumed.history


def test_resume_after_a_crash(tmp_path, uninterrupted):
  """If it fails, a killed run repeats records or does not come back.

  It dies at step 6, having logged step 5; the last checkpoint is of step 4.
  """
  config = standin.make_config(workdir=tmp_path)
  with pytest.raises(RuntimeError, match='power'):
    train(config, Interrupting(6, RuntimeError('power')))
  assert [r['step'] for r in on_disk(config)][-1] == 5
  resumed = train(config)
  assert_same(resumed, uninterrupted)
  assert comparable(on_disk(config)) == comparable(uninterrupted.history)


def test_sigterm(tmp_path):
  """If it fails, a preempted machine loses the steps since its checkpoint."""
  config = standin.make_config(workdir=tmp_path)
  result = train(config, Interrupting(3, signal.SIGTERM))
  assert result.stopped == 'SIGTERM'
  assert checkpoint.Checkpoints(config).steps() == [2, 3]
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_time_limit(tmp_path):
  """If it fails, train.max_seconds does not stop a run, or does not save."""
  config = standin.make_config(workdir=tmp_path, train={'max_seconds': 1e-9})
  result = train(config)
  assert result.stopped == 'time'
  assert checkpoint.Checkpoints(config).steps() == [1]


def test_finished_run_and_a_longer_one(tmp_path, uninterrupted):
  """If it fails, a finished run is spoilt by starting it again, or stays short.

  Bit for bit the first time; then one step more, on top of the same history.
  """
  config = standin.make_config(workdir=tmp_path)
  train(config)
  again = train(config)
  assert_same(again, uninterrupted)
  longer = train(standin.make_config(workdir=tmp_path, train={'steps': 7}))
  assert int(longer.state.step) == 7
  assert comparable(longer.history)[:8] == comparable(uninterrupted.history)


def test_older_checkpoint_if_asked(tmp_path, uninterrupted):
  """If it fails, `checkpoint_step` loses later checkpoints, or its records."""
  config = standin.make_config(workdir=tmp_path)
  train(config)
  result = train(config, checkpoint_step=4)
  assert_same(result, uninterrupted)
  assert os.listdir(tmp_path / 'set_aside') == ['6']
  assert on_disk(config) == result.history


def test_no_workdir_writes_nothing(tmp_path, monkeypatch):
  """If it fails, a run in memory leaves files where it was started."""
  monkeypatch.chdir(tmp_path)
  train(standin.make_config(train={'steps': 2, 'checkpoint_every': 1}))
  assert os.listdir(tmp_path) == []


def test_loss_that_is_not_finite(tmp_path):
  """If it fails, a run goes on with NaN, or saves it over what was good."""

  class Poisoned(standin.Batches):

    def __next__(self):
      batch = super().__next__()
      if self._position == 4:
        batch['mask'][:] = np.nan
      return batch

  config = standin.make_config(workdir=tmp_path)
  with pytest.raises(FloatingPointError, match='loss is nan at step 4'):
    train(config, Poisoned())
  assert checkpoint.Checkpoints(config).steps() == [2]


def test_data_that_ends():
  """If it fails, a finite data set ends a run with a bare StopIteration."""
  batches = Interrupting(3, StopIteration())
  with pytest.raises(ConfigError, match='ended before step 3'):
    train(standin.make_config(), batches)


def test_training_may_end_when_a_goal_is_met(uninterrupted):
  """If it fails, a solved task is trained on, or a run stops for nothing."""
  seen = []

  def until(scores):
    seen.append(scores['loss'])
    return len(seen) == 1

  result = train(standin.make_config(), until=until)
  assert result.stopped == 'until'
  first = next(r for r in uninterrupted.history if r['split'] == 'heldout')
  assert int(result.state.step) == first['step']
  assert seen == [first['loss']]
  assert uninterrupted.stopped == 'done'


def test_a_bar_in_a_file_is_drawn_rarely(capsys):
  """If it fails, a log fills with ten bars a second."""
  train(standin.make_config(train={'steps': 40}), progress=True)
  said = capsys.readouterr().err
  held_out = said.count('held out: ')
  assert held_out == 14
  # One at the start, one at the end; a line of text wipes one and draws it.
  assert said.count('/40 [') <= held_out + 2


def test_another_loss_can_be_minimised(uninterrupted):
  """If it fails, a task's labels are not what is learned."""

  def loss_fn(params, batch, rng):
    del rng
    size = sum(jax.numpy.sum(p**2) for p in jax.tree.leaves(params))
    return size * jax.numpy.sum(batch['mask']), {}

  result = train(standin.make_config(), loss_fn=loss_fn)
  norms = [r['param_norm'] for r in result.history if r['split'] == 'train']
  others = [
      r['param_norm'] for r in uninterrupted.history if r['split'] == 'train'
  ]
  assert norms[-1] < norms[0] and norms[-1] < others[-1]
