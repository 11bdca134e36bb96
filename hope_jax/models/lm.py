"""A language model over any architecture; state in, state out."""

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.models.blocks import Block
from hope_jax.models.layers import DotGeneral, Norm, partitioned
from hope_jax.models.packing import locate, require_room
from hope_jax.models.precision import at_precision
from hope_jax.sharding import constrain
from hope_jax.types import Array, PyTree

# Standard deviation of the logits at initialisation: the first loss is then
# ln V + 0.25^2 / 2.
INITIAL_LOGIT = 0.25


class LanguageModel(nn.Module):
  """Embedding, `layers` equal blocks in one scan, norm, head.

      logits, state = model.apply({'params': params}, tokens, state)

  A text may be fed in calls of any length: handing the state over gives the
  logits of one long call, down to one token at a time.

  Attributes:
    config: sizes and choices.
    dot_general: of every `Dense`.
  """

  config: ModelConfig
  dot_general: DotGeneral | None = None

  @nn.compact
  @at_precision
  def __call__(
      self,
      tokens: Array,
      state: PyTree | None = None,
      *,
      segment_ids: Array | None = None,
      positions: Array | None = None,
      fast: tuple[PyTree, ...] = (),
  ) -> tuple[Array, PyTree]:
    """Predicts the next token at every position.

    Args:
      tokens: [B, T] int, ids below `vocab_size`.
      state: what an earlier call returned; None is a fresh start.
      segment_ids: [B, T] int; every memory restarts where the id changes; 0
        marks padding, which no memory sees and no window of attention counts.
        Inside a document padding may only end a call. None: the rows are of
        one document each.
      positions: [B, A] int, the positions to predict from; None: all of them.
      fast: in-context weights: for each level of the CMS what a row adds to the
        level's parameters, leaves [B, L, ...]; (): nothing.

    Returns:
      Logits [B, T, E], or [B, A, E] at `positions`, float32, and the state
      after the last token.

    Raises:
      ConfigError: as `packing.require_room`; not inside `jit`.
    """
    config = self.config
    dtype = jnp.dtype(config.dtype)
    batch, length = tokens.shape
    tied = config.tie_embeddings
    std = INITIAL_LOGIT * config.dim**-0.5 if tied else 1.0
    embedding = self.param(
        'embedding',
        partitioned(nn.initializers.normal(std), 'vocab', 'embed'),
        (config.vocab_size, config.dim),
    )
    x = (embedding[tokens] / std).astype(dtype)
    x = constrain(x, 'batch', 'time', None)
    place = None if state is None else state['place']
    if not fast:  # else the chunks of a call, which has been looked at whole
      require_room(config, segment_ids, place)
    packing, place = locate(segment_ids, place, batch, length)
    block = Block
    if config.remat == 'block':
      block = nn.remat(Block, prevent_cse=False)
    layers = nn.scan(
        block,
        variable_axes={'params': 0, 'diagnostics': 0},
        split_rngs={'params': True},
        # Flax's types say int.
        in_axes=(0, 1, nn.broadcast),  # pyright: ignore[reportArgumentType]
        out_axes=0,
        length=config.layers,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )(config, self.dot_general, name='layers')
    x, layer_states = layers(
        x, None if state is None else state['layers'], fast, packing
    )
    if positions is not None:
      x = jnp.take_along_axis(x, positions[..., None], axis=1)
    x = Norm(name='norm')(x)
    if tied:
      head = embedding.T
    else:
      init = nn.initializers.normal(INITIAL_LOGIT * config.dim**-0.5)
      head = self.param(
          'head',
          partitioned(init, 'embed', 'vocab'),
          (config.dim, config.vocab_size),
      )
    logits = jnp.matmul(
        x, head.astype(dtype), preferred_element_type=jnp.float32
    )
    return logits, {'place': place, 'layers': layer_states}
