"""Numbers that are not finite: nothing of them is saved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.train import checkpoint, loop, losses, setup
from tests import standin

MODEL = standin.Standin()


class Marked(standin.Batches):
  """Batches whose entry `good` is 0 at the steps `bad`."""

  def __init__(self, *bad):
    super().__init__()
    self._bad = bad

  def __next__(self):
    batch = super().__next__()
    good = np.ones(len(batch['tokens']), np.float32)
    return batch | {'good': good * (self._position not in self._bad)}


def loss_fn(params, batch, rng):
  """The usual loss; at a bad step its gradient alone is NaN: sqrt at 0."""
  nats, diagnostics = losses.make_loss_fn(MODEL)(params, batch, rng)
  size = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
  good = jnp.mean(batch['good'])
  return nats + jnp.sqrt(0 * size + good) - jnp.sqrt(good), diagnostics


def train(batches, loss_fn=loss_fn, **groups):
  config = standin.make_config(**groups)
  return loop.train(MODEL, batches, config, loss_fn=loss_fn, progress=False)


def params_of(result):
  return [np.asarray(x) for x in jax.tree.leaves(result.state.params)]


@pytest.mark.parametrize('log_every', [1, 6])
def test_a_gradient_that_is_not_finite(tmp_path, log_every):
  """If it fails, NaN parameters are saved, and the healthy ones rotated out.

  The loss is finite at the bad step. Whether or not the step is logged, no
  checkpoint of it is written, and the run goes on from the last good one.
  """
  groups = {
      'workdir': tmp_path,
      'train': {'log_every': log_every, 'checkpoint_every': 1,
                'keep_checkpoints': 1, 'eval_every': 9},
  }
  with pytest.raises(
      FloatingPointError, match='the norm of the gradient is nan at step 4'
  ):
    train(Marked(4), **groups)
  config = standin.make_config(**groups)
  assert checkpoint.Checkpoints(config).steps() == [3]
  assert int(train(Marked(), **groups).state.step) == 6


def test_a_held_out_loss_that_is_not_finite(tmp_path):
  """If it fails, a model that cannot read its held-out text goes on unsaid."""
  groups = {'workdir': tmp_path, 'train': {'checkpoint_every': 1}}
  config = standin.make_config(**groups)
  found = iter((2.0, np.nan))
  run = functools.partial(
      loop.train, MODEL, Marked(), progress=False,
      evaluate=lambda params: {'loss': next(found)},
  )
  with pytest.raises(
      FloatingPointError, match='held-out loss is nan, .* at step 6; check'
  ):
    run(config)
  assert checkpoint.Checkpoints(config).steps() == [4, 5]
  found = iter((np.inf,))
  skips = standin.make_config(
      workdir=tmp_path, train={'checkpoint_every': 1, 'not_finite': 'skip'}
  )
  assert run(skips).stopped == 'done'


def test_an_update_that_is_not_finite(tmp_path, monkeypatch):
  """If it fails, an optimizer that overflows at step 3 spoils what was good."""
  rate = lambda count: jnp.where(count < 2, -1e-2, jnp.inf)
  monkeypatch.setattr(
      setup, 'make_optimizer', lambda config: optax.scale_by_schedule(rate)
  )
  groups = {'workdir': tmp_path, 'train': {'checkpoint_every': 1}}
  with pytest.raises(
      FloatingPointError, match='the norm of the update is .* at step 3'
  ):
    train(Marked(), **groups)
  config = standin.make_config(**groups)
  assert checkpoint.Checkpoints(config).steps() == [1, 2]


def test_skipped_steps_leave_no_trace(tmp_path):
  """If it fails, `skip` changes the model, miscounts, or forgets the count.

  The oracle: the run whose data never had the bad batches; its schedule is
  constant, so that a step's number does not matter. Interrupted and resumed,
  it counts the same.
  """
  flat = {'warmup_steps': 0, 'final_learning_rate': 1.0}
  skip = {'not_finite': 'skip', 'log_every': 2, 'eval_every': 9, 'steps': 8}

  class Without(Marked):

    def __next__(self):
      batch = super().__next__()
      return batch if batch['good'].any() else next(self)

  whole = train(Marked(3, 4), train=skip, optimizer=flat)
  other = train(Without(3, 4), train=skip | {'steps': 6}, optimizer=flat)
  for a, b in zip(params_of(whole), params_of(other)):
    np.testing.assert_array_equal(a, b)
  skipped = [r for r in whole.history if r['split'] == 'skipped']
  assert skipped == [
      {'step': 3, 'split': 'skipped', 'total': 1},
      {'step': 4, 'split': 'skipped', 'total': 2},
  ]
  trained = [r['step'] for r in whole.history if r['split'] == 'train']
  assert trained == [2, 6, 8]
  assert all(np.isfinite(list(r.values())[2:]).all() for r in whole.history)

  groups = {'workdir': tmp_path, 'optimizer': flat}
  for steps in (3, 8):  # A checkpoint between the two; 3 is no logged step.
    part = train(Marked(3, 4), train=skip | {'steps': steps}, **groups)
  # A shorter run logs its last step; what it skipped is counted once.
  assert [r for r in part.history if r['split'] == 'skipped'] == skipped
  for a, b in zip(params_of(part), params_of(whole)):
    np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_is_skipped():
  """If it fails, `skip` looks at the gradient only."""

  def loss(params, batch, rng):
    nats, diagnostics = loss_fn(params, batch | {'good': 1.0}, rng)
    # Infinite, and flat.
    return nats + jnp.where(jnp.mean(batch['good']) > 0, 0.0, jnp.inf), (
        diagnostics
    )

  groups = {'train': {'not_finite': 'skip', 'steps': 3, 'eval_every': 9}}
  result = train(Marked(2), loss_fn=loss, **groups)
  assert [r['step'] for r in result.history if r['split'] == 'skipped'] == [2]
  with pytest.raises(FloatingPointError, match='loss is inf at step 2'):
    train(Marked(2), loss_fn=loss)
