"""Bits a byte of held-out text."""

import jax
import numpy as np
import pytest

from hope_jax import sharding
from hope_jax.config import ConfigError
from hope_jax.evals import text
from tests import standin

MODEL = standin.Standin()


@pytest.fixture(scope='module')
def params():
  tokens = np.zeros((1, 4), np.int32)
  init = jax.jit(MODEL.init)
  return sharding.unbox(init(jax.random.key(0), tokens)['params'])


def test_against_numpy(params):
  """If it fails, the number every comparison rests on is wrong.

  Over batches with unequal numbers of targets, and tokens of several bytes.
  """
  batches = [standin.make_batch(np.random.default_rng(i)) for i in range(3)]
  for batch in batches:
    batch['target_bytes'] = batch['target_bytes'] * 3
  found = text.evaluate(MODEL, params, batches)
  nats, tokens = 0.0, 0.0
  for batch in batches:
    logits, _ = MODEL.apply({'params': params}, batch['tokens'])
    exact = np.asarray(logits, np.float64)
    p = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    right = np.take_along_axis(p, batch['targets'][..., None], -1)[..., 0]
    nats -= (np.log(right) * batch['mask']).sum()
    tokens += batch['mask'].sum()
  np.testing.assert_allclose(found['loss'], nats / tokens, rtol=1e-5)
  bits = nats / np.log(2) / (3 * tokens)
  np.testing.assert_allclose(found['bits_per_byte'], bits, rtol=1e-5)
  assert (found['tokens'], found['bytes']) == (tokens, 3 * tokens)


def test_documents_do_not_see_each_other(params):
  """If it fails, what a document scores depends on its neighbour in the row."""
  batch = standin.make_batch(np.random.default_rng(0))
  batch['mask'][:] = batch['target_bytes'][:] = 0
  batch['mask'][:, 6:] = batch['target_bytes'][:, 6:] = 1
  batch['segment_ids'][:, 6:] = 2
  other = dict(batch, tokens=batch['tokens'].copy())
  other['tokens'][:, :6] = 3
  results = [text.evaluate(MODEL, params, [b]) for b in (batch, other)]
  assert results[0] == results[1]


def test_nothing_to_evaluate(params):
  """If it fails, empty held-out text scores 0 / 0."""
  with pytest.raises(ConfigError, match='nothing to evaluate'):
    text.evaluate(MODEL, params, [])
