"""A block: a sequence mixer, then a Continuum Memory System or an MLP.

    h = x + Mixer(Norm(x))
    y = CMS(h)          each level residual, with a norm of its own

Not specified by the paper, which omits norms and residuals "for clarity"; this
is the pre-norm layout of its authors' other models.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.models.attention import Attention
from hope_jax.models.layers import (
  Mlp,
  Norm,
  in_stretches,
  partitioned,
  rematerialized,
)
from hope_jax.models.linear_memory import LinearMemory
from hope_jax.models.lstm import Lstm
from hope_jax.models.mixers import SelfModifyingTitans
from hope_jax.models.packing import Packing
from hope_jax.models.srwm import Srwm
from hope_jax.nested import continuum, linear_memory
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


# Baselines as settings of `TitansConfig`. Static projections and gates, targets
# v_t and plain gradient descent on the L2 loss are Titans with retention and
# momentum (LMM, arXiv 2501.00663, Eq. 8-14), and without them a TTT layer with
# an MLP (arXiv 2407.04620, without its norms and residual target). Both read as
# Hope does, before the token's own write, and the output layer of an MLP writes
# as if its hidden vector had length 1. The rules of
# `nested.linear_memory` take their three projections and convolution from it.
_STATIC = dict(
    adaptive_k=False,
    adaptive_v=False,
    adaptive_q=False,
    adaptive_gates=False,
    target='value',
    objective='l2',
    dgd=False,
)
_GIVEN = dict(input_projection='streams', conv_init='identity')
BASELINES = {
    'titans': _STATIC,
    'ttt': _STATIC | dict(memory='mlp', retention=False, momentum=False),
    **{rule: _GIVEN for rule in linear_memory.ERASES},
}
MIXERS = {
    'hope': SelfModifyingTitans,
    'titans': SelfModifyingTitans,
    'ttt': SelfModifyingTitans,
    'hope_attention': Attention,
    'transformer': Attention,
    'lstm': Lstm,
    'srwm': Srwm,
    **{rule: LinearMemory for rule in linear_memory.ERASES},
}


def settle(config: ModelConfig) -> ModelConfig:
  """Returns the configuration with the settings its architecture stands for."""
  settings = BASELINES.get(config.architecture, {})
  titans = dataclasses.replace(config.titans, **settings)
  return dataclasses.replace(config, titans=titans)


class Block(nn.Module):
  """One layer of any architecture; see the module docstring."""

  config: ModelConfig

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Maps the residual stream [B, T, D] and a state to the next of both."""
    config = self.config
    kind = config.architecture
    config = settle(config)
    y, state = MIXERS[kind](config, name='mixer')(
        Norm(name='norm_mixer')(x), state, packing
    )
    x = constrain(x + y, 'batch', 'time', None)
    if kind in ('hope', 'hope_attention'):
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
