"""Vision Transformer: patches, equal blocks in one scan, mean, head.

The model on which the paper compares optimizers (NL §9.7). Pre-norm blocks of
attention and a GELU MLP, without biases, as the language models of this package
have them; every patch sees every other.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.config import VitConfig
from hope_jax.models.layers import Dense, DotGeneral, Mlp, Norm, partitioned
from hope_jax.models.precision import at_precision
from hope_jax.types import Array

# As `lm.INITIAL_LOGIT`.
INITIAL_LOGIT = 0.25


class VitBlock(nn.Module):
  """x + Attention(Norm(x)), then x + MLP(Norm(x)); a body of `nn.scan`."""

  config: VitConfig
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(self, x: Array, _: None) -> tuple[Array, None]:
    config = self.config
    dtype = jnp.dtype(config.dtype)
    gain = (2 * config.layers) ** -0.5
    batch, patches, dim = x.shape

    def dense(names, name, gain=1.0):
      return Dense(dim, names, dtype, gain, self.dot_general, name=name)

    y = Norm(name='norm_attention')(x)
    q, k, v = (
        dense(('embed', 'heads'), name)(y).reshape(
            batch, patches, config.heads, dim // config.heads
        )
        for name in ('q', 'k', 'v')
    )
    y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    x = x + dense(('heads', 'embed'), 'out', gain)(y)
    mlp = Mlp(
        config.hidden, dtype, depth_gain=gain, dot_general=self.dot_general,
        name='mlp',
    )
    return x + mlp(Norm(name='norm_mlp')(x)), None


class Vit(nn.Module):
  """images [B, S, S, C] float -> logits [B, classes] float32.

  Attributes:
    config: sizes; `config.patch` divides S.
    classes: how many.
    dot_general: of every `Dense`.
  """

  config: VitConfig
  classes: int
  dot_general: DotGeneral | None = None

  @nn.compact
  @at_precision
  def __call__(self, images: Array) -> Array:
    config = self.config
    dim, side = config.dim, config.patch
    batch, height, width, channels = images.shape
    rows, columns = height // side, width // side
    patches = images.reshape(batch, rows, side, columns, side, channels)
    patches = patches.swapaxes(2, 3).reshape(batch, rows * columns, -1)
    embedding = self.param(
        'embedding',
        partitioned(
            nn.initializers.normal(patches.shape[-1] ** -0.5), None, 'embed'
        ),
        (patches.shape[-1], dim),
    )
    position = self.param(
        'position_embedding',
        partitioned(nn.initializers.normal(0.02), None, 'embed'),
        (rows * columns, dim),
    )
    x = (patches @ embedding + position).astype(config.dtype)
    layers = nn.scan(
        VitBlock,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        # Flax's types say int.
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=config.layers,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )(config, self.dot_general, name='layers')
    x, _ = layers(x, None)
    x = jnp.mean(Norm(name='norm')(x).astype(jnp.float32), axis=1)
    head = self.param(
        'head',
        partitioned(
            nn.initializers.normal(INITIAL_LOGIT * dim**-0.5), 'embed', None
        ),
        (dim, self.classes),
    )
    return x @ head
