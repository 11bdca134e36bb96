"""A block: a sequence mixer, then a Continuum Memory System or an MLP.

    h = x + Mixer(Norm(x))
    y = CMS(h)          each level residual, with a norm of its own

`config.architectures` says which mixer, and which of the two follows it. A
mixer is a module: (config)(x, state, packing) -> (y, state), of the normalised
residual stream [B, T, D], what its last call returned (None: a fresh start) and
the document structure of the batch.

Not specified by the paper, which omits norms and residuals "for clarity"; this
is the pre-norm layout of its authors' other models.
"""

import pkgutil

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.models.layers import (
  Mlp,
  Norm,
  in_stretches,
  partitioned,
  rematerialized,
)
from hope_jax.models.packing import Packing
from hope_jax.nested import continuum
from hope_jax.sharding import constrain
from hope_jax.types import Array, PyTree


class Continuum(nn.Module):
  """Continuum Memory System: one MLP a level, fastest first (NL Eq. 70-74).

  The levels share the hidden width of the MLP they stand in for. Their update
  frequencies belong to the regime: periods of the outer optimizer, or
  in-context fast weights; the forward pass is the same.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return in_stretches(Continuum._chain, self, None, x)[1]

  def _chain(self, carry, x):
    """carry: nothing; x: tokens, each mapped by itself."""
    config = self.config
    count = len(config.continuum.periods)
    hidden = round(config.mlp_expansion * config.dim / count)
    hidden = max(8, hidden // 8 * 8)
    levels = [Level(hidden, config, name=f'level_{i}') for i in range(count)]
    weights = None
    if config.continuum.variant == 'independent':
      weights = self.param(
          'weights', partitioned(nn.initializers.ones_init(), None), (count,)
      )
    variant = config.continuum.variant
    return carry, continuum.chain(x, levels, variant=variant, weights=weights)


class Level(nn.Module):
  """What one level adds to the residual stream: MLP(Norm(x))."""

  hidden: int
  config: ModelConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    config = self.config
    y = Norm(name='norm')(x)
    gain = (2 * config.layers) ** -0.5
    return Mlp(
        self.hidden, jnp.dtype(config.dtype), depth_gain=gain, name='mlp'
    )(y)


class Block(nn.Module):
  """One layer of any architecture; see the module docstring."""

  config: ModelConfig

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Maps the residual stream [B, T, D] and a state to the next of both."""
    config = self.config
    architecture = ARCHITECTURES[config.architecture]
    mixer = architecture.mixer
    if isinstance(mixer, str):
      mixer = pkgutil.resolve_name(mixer)
    y, state = mixer(config, **architecture.options, name='mixer')(
        Norm(name='norm_mixer')(x), state, packing
    )
    x = constrain(x + y, 'batch', 'time', None)
    if architecture.levels:
      return Continuum(config, name='continuum')(x), state
    # SwiGLU has three matrices where an MLP has two: equal parameters.
    hidden = round(config.mlp_expansion * config.dim * 2 / 3 / 8) * 8
    mlp = rematerialized(Mlp, config)(
        max(8, hidden),
        jnp.dtype(config.dtype),
        gated=True,
        depth_gain=(2 * config.layers) ** -0.5,
        name='mlp',
    )
    return x + mlp(Norm(name='norm_mlp')(x)), state
