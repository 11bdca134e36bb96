"""A default Hope that reads on and on: its memories stay finite and bounded."""

import argparse
import inspect

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.models.lm import LanguageModel

CALL = 500


def _streams(length):
  """Rows that a memory could find hard: [rows, length] bytes."""
  n = np.arange(length)
  text = inspect.getsource(argparse).encode()
  return {
      'one token': np.full(length, 7),
      'period 2': n % 2,
      'period 16': n % 16,
      'white noise': np.random.default_rng(0).integers(0, 256, length),
      'text': np.resize(np.frombuffer(text, np.uint8), length),
      'noise, then one token': np.where(
          n < length // 2,
          np.random.default_rng(1).integers(0, 256, length), 3,
      ),
  }


def _norms(memory, length):
  """Largest norm of any memory matrix after each call, [calls, rows]."""
  config = ModelConfig(
      dim=16, heads=2, layers=1, titans=TitansConfig(memory=memory),
      remat='none',
  )
  model = LanguageModel(config)
  streams = np.stack(list(_streams(length).values())).astype(np.int32)
  params = jax.jit(model.init)(jax.random.key(0), streams[:, :4])['params']
  params = meta.unbox(params)

  @jax.jit
  def read(tokens, state):
    (logits, state), extra = model.apply(
        {'params': params}, tokens, state, mutable=['diagnostics']
    )
    memories = jax.tree.leaves(state['layers']['titans'].memories)
    norms = [jnp.sqrt(jnp.sum(w * w, axis=(-2, -1))) for w in memories]
    largest = jnp.stack([jnp.max(x, axis=(0, 2)) for x in norms])
    return state, jnp.max(largest, axis=0), jnp.max(jnp.abs(logits)), extra

  state, history = None, []
  for start in range(0, length, CALL):
    state, norms, logit, extra = read(streams[:, start : start + CALL], state)
    assert np.isfinite(logit), f'not finite after {start} tokens'
    found = extra['diagnostics']['layers']['mixer']
    assert (found['max_write'] < 1).all()
    assert (found['mean_alpha'] >= 0.99).all()
    history.append(norms)
  return np.stack(history)


@pytest.mark.parametrize(
    'memory,length',
    [
        ('mlp', 4_000),
        pytest.param('mlp', 100_000, marks=pytest.mark.slow),
        pytest.param('matrix', 100_000, marks=pytest.mark.slow),
    ],
)
def test_no_stream_makes_a_memory_grow(memory, length):
  """If this fails, a long text drives a memory to infinity, or to NaN.

  At initialisation, where no training has yet taught the gates to hold back.
  """
  norms = _norms(memory, length)
  quarter = len(norms) // 4
  early, late = norms[quarter : 2 * quarter], norms[-quarter:]
  names = list(_streams(16))
  levels = dict(zip(names, early.max(axis=0)))
  # Its end is another stream than its beginning, with a level of its own.
  mixed = 'noise, then one token'
  levels[mixed] = max(levels[mixed], levels['one token'])
  for row, name in enumerate(names):
    # Windows of noise differ a little; growth would add up.
    assert late[:, row].max() < 1.25 * levels[name], name
  assert norms.max() < 10
