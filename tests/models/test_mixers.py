"""The mixer of a default Hope as it stands before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.models.lm import LanguageModel
from hope_jax.sharding import unbox


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
  params = unbox(model.init(jax.random.key(1), tokens)['params'])

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
