"""A language model of a few lines, and made-up data, for tests of training.

It keeps the contract of `models.lm.LanguageModel` (boxed parameters, state in
and out, diagnostics, parameters stacked over layers, CMS levels by name) and
compiles in a second.
"""

from collections.abc import Callable
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import config as config_lib
from hope_jax import sharding

VOCAB = 16
DIM = 8
LAYERS = 2


class _Continuum(nn.Module):

  @nn.compact
  def __call__(self):
    init = nn.with_logical_partitioning(
        nn.initializers.normal(0.2), ('layers', 'embed', 'mlp')
    )
    return [self.param(f'level_{i}', init, (LAYERS, DIM, DIM)) for i in (0, 1)]


class _Blocks(nn.Module):

  @nn.compact
  def __call__(self):
    ones = nn.with_logical_partitioning(
        nn.initializers.ones, ('layers', 'embed')
    )
    scale = self.param('scale', ones, (LAYERS, DIM))
    return scale, _Continuum(name='continuum')()


class Standin(nn.Module):
  """h_t = h_{t-1} / 2 + embedding; h = 0 where a segment starts; two layers."""

  config: config_lib.ModelConfig = config_lib.ModelConfig(vocab_size=VOCAB)
  dot_general: Callable = jax.lax.dot_general

  @nn.compact
  def __call__(
      self, tokens, state=None, *, segment_ids=None, positions=None
  ):
    init = nn.with_logical_partitioning(
        nn.initializers.normal(0.5), ('vocab', 'embed')
    )
    table = self.param('embedding', init, (self.config.vocab_size, DIM))
    scale, levels = _Blocks(name='layers')()
    if segment_ids is None:
      segment_ids = jnp.ones_like(tokens)
    if state is None:
      hidden = jnp.zeros((tokens.shape[0], DIM))
      segment = segment_ids[:, 0]
    else:
      hidden, segment = state

    def step(carry, xs):
      hidden, last = carry
      x, segment = xs
      hidden = jnp.where((segment == last)[:, None], hidden, 0) / 2 + x
      return (hidden, segment), hidden

    xs = (table[tokens].swapaxes(0, 1), segment_ids.swapaxes(0, 1))
    state, hidden = jax.lax.scan(step, (hidden, segment), xs)
    x = sharding.constrain(hidden.swapaxes(0, 1), 'batch', 'time', None)
    for layer in range(LAYERS):
      for level in levels:
        x = x + self.dot_general(
            jnp.tanh(x * scale[layer]), level[layer], (((2,), (0,)), ((), ()))
        )
    self.sow('diagnostics', 'state_norm', jnp.linalg.norm(state[0], axis=-1))
    if positions is not None:
      x = jnp.take_along_axis(x, positions[..., None], axis=1)
    return x @ table.T, state


# A model of bytes.
BYTES = Standin(config_lib.ModelConfig(vocab_size=256))


class Batches:
  """Seeded batches that know their position."""

  def __init__(self, *, batch_size=8, length=12, seed=0):
    self._shape = (batch_size, length)
    self._seed = seed
    self._position = 0

  def __iter__(self):
    return self

  def __next__(self):
    rng = np.random.default_rng((self._seed, self._position))
    self._position += 1
    return make_batch(rng, *self._shape)

  def get_state(self):
    return {'position': self._position}

  def set_state(self, state):
    self._position = state['position']


def make_batch(rng, batch_size=8, length=12):
  """A sequence that counts up, with rows of unequal numbers of targets."""
  start = rng.integers(0, VOCAB, (batch_size, 1))
  text = (start + np.arange(length + 1)) % VOCAB
  mask = (rng.random((batch_size, length)) < rng.random((batch_size, 1))) * 1.0
  return {
      'tokens': text[:, :-1].astype(np.int32),
      'targets': text[:, 1:].astype(np.int32),
      'mask': mask.astype(np.float32),
      'segment_ids': np.ones((batch_size, length), np.int32),
      'target_bytes': mask.astype(np.int32),
  }


def make_config(**groups):
  """A configuration for `Standin`; e.g. train={'steps': 4}."""
  values = {
      'model': {
          'vocab_size': VOCAB, 'dim': DIM, 'layers': LAYERS,
          'continuum': {'periods': (1, 3)},
      },
      'data': {'sequence_length': 12, 'batch_size': 8},
      'optimizer': {'warmup_steps': 2, 'learning_rate': 1e-2},
      'mesh': {'data': 1},
      'train': {
          'steps': 6, 'log_every': 1, 'eval_every': 3, 'checkpoint_every': 2,
      },
  }
  workdir = groups.pop('workdir', '')
  for name, fields in groups.items():
    values[name] = values[name] | fields
  config = config_lib.from_dict(values)
  return dataclasses.replace(config, workdir=str(workdir))
