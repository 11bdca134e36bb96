"""An architecture from outside the package: one mixer, one entry."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  OptimizerConfig,
  TrainConfig,
  architectures,
)
from hope_jax.data import pipeline
from hope_jax.models.factory import language_model
from hope_jax.train import loop


class Mean(nn.Module):
  """The mean of all tokens so far, times a gain."""

  config: ModelConfig
  gain: float

  @nn.compact
  def __call__(self, x, state, packing):
    del packing
    if state is None:
      state = jnp.zeros_like(x[:, :1]), jnp.zeros(())
    total = state[0] + jnp.cumsum(x, axis=1)
    count = state[1] + 1 + jnp.arange(x.shape[1])
    scale = self.param('scale', nn.initializers.ones_init(), x.shape[-1:])
    y = self.gain * scale * total / count[:, None]
    return y, (total[:, -1:], count[-1])


@pytest.fixture
def mean():
  """Registers the architecture for one test."""
  architectures.register(
      'mean', architectures.Architecture(Mean, options={'gain': 0.5})
  )
  yield 'mean'
  del architectures.ARCHITECTURES['mean']


def test_one_from_outside_is_trained(mean):
  """If it fails, a new architecture means changes all over the package."""
  config = Config(
      model=ModelConfig(architecture=mean, dim=8, layers=2, heads=1),
      data=DataConfig(sequence_length=32, batch_size=2),
      optimizer=OptimizerConfig(warmup_steps=0),
      train=TrainConfig(steps=2, log_every=1),
  )
  model = language_model(config.model)
  result = loop.train(
      model, pipeline.train_batches(config.data), config, progress=False
  )
  assert [record['step'] for record in result.history] == [1, 2]
  scale = result.state.params['layers']['mixer']['scale']
  assert scale.shape == (2, 8) and np.all(scale != 1)
