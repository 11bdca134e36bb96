"""Linear attention, RetNet, DeltaNet and Gated DeltaNet as mixers.

`LinearMemory` has a rule between the streams and the gated output of Hope's own
mixer, so that a comparison changes the memory alone. `PublishedMemory` is the
layer that the rule's authors publish; docs/baselines.md compares the two, line
by line.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.config.build import require
from hope_jax.models.attention import rotate
from hope_jax.models.layers import (
  CausalConv,
  Norm,
  gate,
  in_tiles,
  partitioned,
)
from hope_jax.models.mixers import MemoryMixer
from hope_jax.models.packing import Packing
from hope_jax.nested import linear_memory
from hope_jax.nested.dgd import unit
from hope_jax.nested.titans import Streams
from hope_jax.sharding import constrain, current_spec
from hope_jax.types import Array, PyTree


class LinearMemory(MemoryMixer):
  """A matrix memory with static projections, written by a rule.

  Keys and queries are what the rule's authors have: elu(x) + 1 (linear
  attention), rotated by position (RetNet), or unit vectors (delta rules).

  Attributes:
    rule: a key of `nested.linear_memory.ERASES`.
  """

  # Flax's types do not see that the field of `Mixer` before goes by keyword.
  rule: str  # pyright: ignore[reportGeneralTypeIssues]

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'memory' [B, H, K, V], 'tail': of the convolution} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    config = self.config
    tail = None if state is None else state['tail']
    (q, k, v), new_tail = self.streams(x, tail, packing)
    q, k = self.features(q, k, packing)
    o, memory = linear_memory.layer(
        q, k, self.writes(x, v),
        None if state is None else state['memory'],
        erase=linear_memory.ERASES[self.rule],
        starts=packing.starts,
        present=packing.present,
        precision='bf16' if config.dtype == 'bfloat16' else 'float32',
        partition=current_spec((x.shape[0], config.heads), 'batch', 'heads'),
        implementation=config.titans.implementation,
    )
    if self.rule == 'linear_attention':
      o = self.normalised(o)
    return self.output(x, o), {'memory': memory, 'tail': new_tail}

  def features(
      self, q: Array, k: Array, packing: Packing
  ) -> tuple[Array, Array]:
    """What queries and keys [B, T, H, K] are to the memory."""
    if self.rule == 'linear_attention':
      return nn.elu(q) + 1, nn.elu(k) + 1
    if self.rule == 'retnet':
      position = packing.position
      position = jnp.arange(q.shape[1]) if position is None else position
      q, k = (rotate(y, position, self.config.rope_base) for y in (q, k))
      return q, k * k.shape[-1] ** -0.5
    return self.unit(q), self.unit(k)

  def unit(self, x: Array) -> Array:
    """x as a unit vector."""
    return unit(x)

  def writes(self, x: Array, v: Array) -> linear_memory.Writes:
    """What is written of values [B, T, H, V], and how strongly."""
    if not linear_memory.ERASES[self.rule]:
      return linear_memory.added_writes(self.rule, v)
    beta = nn.sigmoid(self.beta(x))
    if self.config.linear.eigenvalues == 'signed':
      beta = 2 * beta
    log_alpha = None
    if self.rule == 'gated_deltanet':
      log_alpha = self.log_alpha(x)
    return linear_memory.delta_writes(v, beta, log_alpha)

  def beta(self, x: Array) -> Array:
    """The logit of the write strength, [B, T, H]."""
    return gate(self, x, 'beta', bias=0.0)

  def log_alpha(self, x: Array) -> Array:
    """Log retentions [B, T, H]; 0.999 a token where the gate is at rest."""
    return -nn.softplus(gate(self, x, 'alpha', bias=-6.9))

  def normalised(self, o: Array) -> Array:
    """Linear attention: the answer over the sum of its weights, beside it."""
    return o[..., :-1] / jnp.maximum(o[..., -1:], 1e-6)


def a_log_init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """log A with A uniform in (0, 16)."""
  a = jax.random.uniform(rng, shape, dtype, minval=1e-6, maxval=16.0)
  return jnp.log(a)


def dt_bias_init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """What softplus makes log-uniform in (0.001, 0.1)."""
  low, high = math.log(1e-3), math.log(1e-1)
  dt = jnp.exp(jax.random.uniform(rng, shape, dtype, minval=low, maxval=high))
  return dt + jnp.log(-jnp.expm1(-dt))


def uniform_tap_init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """Uniform in +-1 / sqrt(width), as PyTorch draws a depthwise convolution."""
  bound = shape[0] ** -0.5
  return jax.random.uniform(rng, shape, dtype, minval=-bound, maxval=bound)


def l2_normalized(x: Array) -> Array:
  """x / sqrt(|x|^2 + 1e-6) over the last axis."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class PublishedMemory(LinearMemory):
  """A rule's layer as its authors publish it.

      q, k, v = x W, or silu(conv(x W)) of window 4            (delta rules)
      q = K^-1/2 f(q), k = f(k)      f: rotation (RetNet), x / |x| (delta rules)
      beta_t = sigmoid(x W_beta), or twice that ('signed')
      alpha_t = exp(-exp(A_log) softplus(x W_alpha + dt_bias))  (Gated DeltaNet)
      y = (silu(x W_g) * RMSNorm(o)) W_o        output='gated'
      y = RMSNorm(o) W_o                        'norm'
      y = o W_o                                 'plain'

  Linear attention: f(x) = elu(x) + 1, no K^-1/2, o_t over the sum of its
  weights + 1e-6. Sources: arXiv 2006.16236, Eq. 9 and 12; 2307.08621, Eq. 8;
  fla-core 0.6 and its `DeltaNet` and `GatedDeltaNet` at their defaults.

  Attributes:
    key_expansion: width of all keys over that of the residual stream, where the
      configuration has none.
    value_expansion: the same for values.
    conv: whether streams go through a convolution and SiLU.
    output: what stands between the answers and W_o.
  """

  key_expansion: float  # pyright: ignore[reportGeneralTypeIssues]
  value_expansion: float  # pyright: ignore[reportGeneralTypeIssues]
  conv: bool  # pyright: ignore[reportGeneralTypeIssues]
  output_form: Literal['plain', 'norm', 'gated']  # pyright: ignore[reportGeneralTypeIssues]

  def width(self, of: Literal['key', 'value']) -> int:
    """The width of all keys, or values; a multiple of the heads."""
    model = self.config
    share = getattr(model.linear, f'{of}_expansion')
    if share is None:
      share = getattr(self, f'{of}_expansion')
    width = round(share * model.dim)
    require(
        width > 0 and width % model.heads == 0,
        f'model.linear.{of}_expansion: model.heads must divide {share:g} times'
        f' model.dim; got heads={model.heads}, dim={model.dim}',
    )
    return width

  def streams(
      self, x: Array, tail: Array | None, packing: Packing
  ) -> tuple[Streams, Array | None]:
    """x [B, T, D] -> q and k [B, T, H, K], v [B, T, H, V], and the new tail."""
    model = self.config
    if tail is None and self.conv:
      shape = x.shape[0], model.titans.conv_width - 1, self.streams_width()
      tail = jnp.zeros(shape, jnp.dtype(model.dtype))
    xs = x, packing.position, packing.present
    tail, streams = in_tiles(PublishedMemory._streams, self, tail, xs)
    return streams, tail

  def streams_width(self) -> int:
    """Of queries, keys and values side by side."""
    return 2 * self.width('key') + self.width('value')

  def _streams(self, tail, xs):
    """carry: the tail; xs: x and the packing's position and present."""
    x, position, present = xs
    model, key = self.config, self.width('key')
    widths = {'q': key, 'k': key, 'v': self.width('value')}
    wide = jnp.concatenate(
        [self.into_heads(w, f'project_{n}')(x) for n, w in widths.items()],
        axis=-1,
    )
    if self.conv:
      conv = CausalConv(model.titans.conv_width, uniform_tap_init, name='conv')
      wide, tail = conv(wide, tail, position, present)
      wide = nn.silu(wide)
    parts = [
        constrain(
            y.reshape(*x.shape[:2], model.heads, -1).astype(jnp.float32),
            *('batch', 'time', 'heads', 'head_dim'),
        )
        for y in jnp.split(wide, (key, 2 * key), axis=-1)
    ]
    return tail, Streams(*parts)

  def features(
      self, q: Array, k: Array, packing: Packing
  ) -> tuple[Array, Array]:
    """As in `LinearMemory`; delta rules scale queries, as RetNet does keys."""
    q, k = super().features(q, k, packing)
    if linear_memory.ERASES[self.rule]:
      q = q * q.shape[-1] ** -0.5
    return q, k

  def unit(self, x: Array) -> Array:
    """As a unit vector, short ones too."""
    return l2_normalized(x)

  def beta(self, x: Array) -> Array:
    """The logit of the write strength, without bias."""
    return gate(self, x, 'beta', bias=None)

  def log_alpha(self, x: Array) -> Array:
    """-exp(A_log) softplus(x W + dt_bias), [B, T, H]."""
    a_log, dt_bias = (
        self.param(name, partitioned(init, 'heads'), (self.config.heads,))
        for name, init in (('a_log', a_log_init), ('dt_bias', dt_bias_init))
    )
    dt = nn.softplus(gate(self, x, 'alpha', bias=None) + dt_bias)
    return -jnp.exp(a_log) * dt

  def normalised(self, o: Array) -> Array:
    """As in `LinearMemory`, with 1e-6 added to the sum."""
    return o[..., :-1] / (o[..., -1:] + 1e-6)

  def output(self, x: Array, o: Array) -> Array:
    """What the layer adds, [B, T, D]."""
    return in_tiles(PublishedMemory._output, self, None, (x, o))[1]

  def _output(self, carry, xs):
    """carry: nothing; xs: x and o."""
    x, o = xs
    if self.output_form != 'plain':
      o = Norm(None, name='norm_out')(o)
    o = o.reshape(*x.shape[:2], -1).astype(jnp.dtype(self.config.dtype))
    if self.output_form == 'gated':
      o = nn.silu(self.into_heads(o.shape[-1], 'gate')(x)) * o
    return carry, self.out_of_heads()(o)
