"""A block: a sequence mixer, then a Continuum Memory System or an MLP.

    h = x + Mixer(Norm(x))
    y = CMS(h)          each level residual, with a norm of its own

`config.architectures` says which mixer, and which of the two follows it. A
mixer is a module: (config)(x, state, packing) -> (y, state), of the normalised
residual stream [B, T, D], what its last call returned (None: a fresh start) and
the document structure of the batch. `layers.Mixer` is a base for it, with the
`dot_general` that some optimizers ask for.

Not specified by the paper, which omits norms and residuals "for clarity"; this
is the pre-norm layout of its authors' other models.
"""

from collections.abc import Callable
import functools
import pkgutil
from typing import Any

from flax.core import meta
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.config.build import require
from hope_jax.models.layers import (
  DotGeneral,
  Mlp,
  Norm,
  in_tiles,
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
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(self, x: Array, fast: tuple[PyTree, ...] = ()) -> Array:
    """Maps tokens [B, T, D], each by itself.

    Args:
      x: the residual stream.
      fast: for each level what a row adds to its parameters, leaves [B, ...],
        as `fast_shapes` has it; (): nothing.

    Returns:
      The residual stream after the levels.
    """
    return in_tiles(Continuum._chain, self, fast, x)[1]

  def _chain(self, fast, x):
    """carry: the fast weights, which stand still; x: tokens."""
    config = self.config
    levels = [
        Level(config, self.dot_general, name=f'level_{i}')
        for i in range(len(config.continuum.periods))
    ]
    weights = None
    if config.continuum.variant == 'independent':
      weights = self.param(
          'weights',
          partitioned(nn.initializers.ones_init(), None),
          (len(levels),),
      )
    if fast:
      levels = [level.of_rows(w) for level, w in zip(levels, fast)]
    return fast, continuum.chain(x, levels, weights)


class Level(nn.Module):
  """What one level adds to the residual stream: MLP(Norm(x))."""

  config: ModelConfig
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    config = self.config
    count = len(config.continuum.periods)
    hidden = round(config.mlp_expansion * config.dim / count)
    y = Norm(name='norm')(x)
    return Mlp(
        max(8, hidden // 8 * 8),
        jnp.dtype(config.dtype),
        depth_gain=(2 * config.layers) ** -0.5,
        dot_general=self.dot_general,
        name='mlp',
    )(y)

  def of_rows(self, fast: PyTree) -> Callable[[Array], Array]:
    """The level as a function of [B, T, D], `fast` added to its parameters."""
    theta = meta.unbox(self.variables['params'])
    # What the rows learn from is the plain gradient of Eq. 71, whatever the
    # outer optimizer makes of the gradients of products.
    level = self.clone(parent=None, dot_general=None)

    # Without mutable collections `apply` returns the output alone.
    def row(offset: PyTree, x: Array) -> Any:
      weights = jax.tree.map(jnp.add, theta, offset)
      return level.apply({'params': weights}, x)

    return functools.partial(jax.vmap(row), fast)


def fast_shapes(config: ModelConfig) -> tuple[PyTree, ...]:
  """The parameters of each level in all layers, [L, ...], as shapes."""
  level = Level(config, parent=None)
  x = jnp.zeros((1, config.dim), jnp.float32)
  one = meta.unbox(jax.eval_shape(level.init, jax.random.key(0), x))['params']
  layers = jax.tree.map(
      lambda p: jax.ShapeDtypeStruct((config.layers, *p.shape), p.dtype), one
  )
  return (layers,) * len(config.continuum.periods)


class Block(nn.Module):
  """One layer of any architecture; see the module docstring."""

  config: ModelConfig
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(
      self,
      x: Array,
      state: PyTree | None,
      fast: tuple[PyTree, ...],
      packing: Packing,
  ) -> tuple[Array, PyTree]:
    """Maps the residual stream [B, T, D] and a state to the next of both."""
    config = self.config
    architecture = ARCHITECTURES[config.architecture]
    mixer = architecture.mixer
    if isinstance(mixer, str):
      mixer = pkgutil.resolve_name(mixer)
    options = dict(architecture.options)
    if self.dot_general:
      require(
          hasattr(mixer, 'dot_general'),
          f'the mixer of architecture {config.architecture!r} has no field'
          ' dot_general, which the optimizer asks for',
      )
      options['dot_general'] = self.dot_general
    y, state = mixer(config, **options, name='mixer')(
        Norm(name='norm_mixer')(x), state, packing
    )
    x = constrain(x + y, 'batch', 'time', None)
    if architecture.levels:
      levels = Continuum(config, self.dot_general, name='continuum')
      return levels(x, fast), state
    # SwiGLU has three matrices where an MLP has two: equal parameters.
    hidden = round(config.mlp_expansion * config.dim * 2 / 3 / 8) * 8
    mlp = rematerialized(Mlp, config)(
        max(8, hidden),
        jnp.dtype(config.dtype),
        gated=True,
        depth_gain=(2 * config.layers) ** -0.5,
        dot_general=self.dot_general,
        name='mlp',
    )
    return x + mlp(Norm(name='norm_mlp')(x)), state
