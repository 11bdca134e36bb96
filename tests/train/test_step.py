"""The training step: its loss, its metrics, and micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import sharding
from hope_jax.config import MeshConfig
from hope_jax.train import losses
from hope_jax.train import state as state_lib
from hope_jax.train import step as step_lib
from tests import standin

OPTIMIZER = optax.sgd(0.5)


def make_state():
  mesh = sharding.make_mesh(MeshConfig(data=1))
  return state_lib.create(standin.Standin(), OPTIMIZER, 12, 0, mesh)


def one_step(batch, accumulate=1, **options):
  loss_fn = losses.make_loss_fn(standin.Standin())
  step = step_lib.make_train_step(loss_fn, OPTIMIZER, accumulate, **options)
  return jax.jit(step)(make_state(), batch)


@pytest.fixture(scope='module')
def batch():
  return standin.make_batch(np.random.default_rng(0))


@pytest.fixture(scope='module')
def stepped(batch):
  return one_step(batch, schedule=lambda step: 0.5 + step)


def test_token_nats():
  """If it fails, the loss is not -log softmax. Against NumPy in float64."""
  rng = np.random.default_rng(0)
  logits = 30 * rng.normal(size=(2, 3, 5)).astype(np.float32)
  targets = rng.integers(0, 5, (2, 3))
  exact = logits.astype(np.float64)
  top = exact.max(-1, keepdims=True)
  norm = top[..., 0] + np.log(np.exp(exact - top).sum(-1))
  expected = norm - np.take_along_axis(exact, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(
      losses.token_nats(logits, targets), expected, rtol=1e-5, atol=1e-5
  )


def test_token_nats_of_bfloat16_logits_are_float32():
  """If it fails, a bf16 model's loss is rounded to two digits."""
  logits = jnp.zeros((1, 1, 1000), jnp.bfloat16)
  nats = losses.token_nats(logits, jnp.zeros((1, 1), jnp.int32))
  assert nats.dtype == jnp.float32
  np.testing.assert_allclose(nats, np.log(1000), rtol=1e-6)


def test_metrics(batch, stepped):
  """If it fails, a reported number is not what its name says.

  The loss again by a plain forward pass and NumPy; norms from the parameters,
  which plain gradient descent of rate 0.5 moves by half the gradient.
  """
  state, metrics = stepped
  before = make_state()
  logits, _ = standin.Standin().apply(
      {'params': before.params}, batch['tokens']
  )
  exact = np.asarray(logits, np.float64)
  log_p = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
  nats = -np.take_along_axis(log_p, batch['targets'][..., None], -1)[..., 0]
  total, tokens = (nats * batch['mask']).sum(), batch['mask'].sum()
  np.testing.assert_allclose(metrics['loss'], total / tokens, rtol=1e-5)
  np.testing.assert_allclose(
      metrics['bits_per_byte'],
      total / np.log(2) / batch['target_bytes'].sum(), rtol=1e-5,
  )
  assert metrics['tokens'] == tokens
  assert metrics['learning_rate'] == 0.5

  def norm(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))

  moved = jax.tree.map(lambda a, b: (a - b) / 0.5, before.params, state.params)
  np.testing.assert_allclose(metrics['grad_norm'], norm(moved), rtol=1e-4)
  np.testing.assert_allclose(
      metrics['param_norm'], norm(state.params), rtol=1e-5
  )
  assert metrics['state_norm/mean'] <= metrics['state_norm/max']
  assert int(state.step) == 1
  for leaf in jax.tree.leaves(metrics):
    assert leaf.shape == ()


@pytest.mark.parametrize('accumulate', [2, 8])
def test_micro_batches_equal_the_batch(batch, stepped, accumulate):
  """If it fails, accumulation changes the result.

  Rows have unequal numbers of targets, so a mean of means would show. Only the
  order of float32 sums differs.
  """
  whole, expected = stepped
  state, metrics = one_step(batch, accumulate, schedule=lambda step: 0.5 + step)
  for name in expected:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      state.params, whole.params,
  )


def test_masked_targets_do_not_count(batch, stepped):
  """If it fails, padding is learned."""
  changed = dict(batch)
  noise = np.where(batch['mask'] == 0, 3, batch['targets'])
  changed['targets'] = noise.astype(np.int32)
  assert (changed['targets'] != batch['targets']).any()
  _, metrics = one_step(changed, schedule=lambda step: 0.5 + step)
  assert float(metrics['loss']) == float(stepped[1]['loss'])


def test_batch_without_targets(batch):
  """If it fails, a batch of padding turns all parameters into NaN."""
  empty = dict(batch)
  for name in ('mask', 'target_bytes'):
    empty[name] = np.zeros_like(batch[name])
  state, metrics = one_step(empty)
  assert float(metrics['loss']) == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
