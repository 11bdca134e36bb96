"""The mixer of a default Hope as it stands before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.models.lm import LanguageModel
from hope_jax.models.mixers import MemoryMixer
from hope_jax.models.packing import Packing
from hope_jax.sharding import unbox


@pytest.mark.slow  # test_gradients.py has it for what runs every time.
@pytest.mark.parametrize('memory', ['matrix', 'mlp'])
def test_no_parameter_outweighs_the_others_at_initialisation(memory):
  """If this fails, clipping by the global norm throws the first steps away.

  The taps by which a key sees its own token start at zero, and so the first key
  of each document is zero.
  """
  config = ModelConfig(
      vocab_size=16, dim=16, heads=1, layers=1, remat='none',
      titans=TitansConfig(memory=memory, chunk=4, projection_chunk=4),
  )
  model = LanguageModel(config)
  tokens = jax.random.randint(jax.random.key(0), (2, 24), 0, 16)
  segments = jnp.asarray(np.arange(24) // 7 + 1) * jnp.ones((2, 1), jnp.int32)
  params = unbox(jax.jit(model.init)(jax.random.key(1), tokens)['params'])

  @jax.jit
  def gradient(params):
    def loss(params):
      logits, _ = model.apply({'params': params}, tokens, segment_ids=segments)
      return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    return jax.grad(loss)(params)

  norms = {
      jax.tree_util.keystr(path, simple=True, separator='/'):
      float(jnp.linalg.norm(g))
      for path, g in jax.tree_util.tree_leaves_with_path(gradient(params))
  }
  (taps,) = (n for name, n in norms.items() if 'mixer/conv' in name)
  assert 0 < taps <= max(n for name, n in norms.items() if 'conv' not in name)


class Streams(MemoryMixer):
  """The streams alone, and the convolution's tail."""

  @nn.compact
  def __call__(self, x):
    streams, tail = self.streams(x, None, Packing(None, None, None))
    return *streams, tail


@pytest.mark.parametrize('remat', ['none', 'block'])
@pytest.mark.parametrize('where', ['equal', 'shared'])
def test_keys_start_as_the_queries_before(where, remat):
  """If this fails, a memory does not predict from the first step on.

  Beside tiles of 256 tokens: the draw that projections share must be one.
  """
  config = ModelConfig(
      dim=8, heads=2, layers=1, remat=remat,
      titans=TitansConfig(memory='matrix', input_projection=where),
  )
  mixer = Streams(config)
  x = jax.random.normal(jax.random.key(0), (2, 300, 8))
  params = jax.jit(mixer.init)(jax.random.key(1), x)
  q, k, v, tail = map(np.asarray, mixer.apply(params, x))
  assert tail.shape == (2, 3, 8)
  np.testing.assert_allclose(k[:, 1:], q[:, :-1], atol=1e-6)
  np.testing.assert_array_equal(k[:, 0], 0)
  name = 'project_v' if where == 'equal' else 'project_shared'
  kernel = unbox(params['params'])[name]['kernel']
  expected = jax.nn.silu(x @ kernel).reshape(2, 300, 2, 4)
  np.testing.assert_allclose(v, expected, atol=1e-5)


def test_projections_that_start_equal_part():
  """If this fails, one draw is one parameter: a key is a query for good."""
  config = ModelConfig(
      vocab_size=16, dim=8, heads=2, layers=2, remat='none',
      titans=TitansConfig(memory='matrix'),
  )
  model = LanguageModel(config)
  tokens = jax.random.randint(jax.random.key(0), (2, 24), 0, 16)
  params = unbox(jax.jit(model.init)(jax.random.key(1), tokens)['params'])
  loss = lambda p: -jnp.mean(
      jax.nn.log_softmax(model.apply({'params': p}, tokens)[0])[..., 0]
  )
  of = lambda tree, name: tree['layers']['mixer'][f'project_{name}']['kernel']
  grads = jax.jit(jax.grad(loss))(params)
  np.testing.assert_array_equal(of(params, 'q'), of(params, 'k'))
  assert np.abs(of(params, 'q')[0] - of(params, 'q')[1]).min() > 0
  assert np.abs(of(grads, 'q') - of(grads, 'k')).max() > 0
