"""Layers of every architecture: norms, projections, convolution, MLPs."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.nested.memory import Memory
from hope_jax.nested.memory import init as init_memory
from hope_jax.sharding import constrain
from hope_jax.types import Array, PyTree

# (lhs, rhs, dimension_numbers, precision, preferred_element_type) -> product
DotGeneral = Callable[..., Array]


def partitioned(init: Any, *names: str | None) -> Any:
  """An initialiser of a float32 parameter that carries logical axis names.

  Args:
    init: as those of `jax.nn.initializers`, (rng, shape, dtype) -> array; left
      to itself it would draw float64 under `jax_enable_x64`.
    *names: of each axis.
  """
  init = functools.partial(init, dtype=jnp.float32)
  return nn.with_logical_partitioning(init, names)


def rematerialized(part: Any, config: ModelConfig) -> Any:
  """`part`, a module class or method; under remat='parts' computed anew."""
  if config.remat == 'none':
    return part
  # Inside a rematerialised block both computations share a loop body, where the
  # compiler would merge them again.
  return nn.remat(part, prevent_cse=config.remat == 'block')


# Tokens that a rematerialised part of a block reads at a time.
TILE = 512


def in_tiles(
    part: Callable, module: nn.Module, carry: PyTree, xs: PyTree
) -> tuple[PyTree, PyTree]:
  """part(module, carry, xs), rematerialised, a tile of tokens at a time.

  What a part needs on the way (hidden layers, shifted copies) is then held for
  one tile and not for all tokens. The result does not depend on it.

  Args:
    part: a method (module, carry, xs) -> (carry, ys) that reads tokens in
      order; the carry is all that it knows of earlier ones.
    module: owns the parameters; `module.config.remat` 'none' reads all at once.
    carry: what comes before the first token.
    xs: pytree of [B, T, ...].

  Returns:
    The carry after the last token, and the outputs [B, T, ...].
  """
  step = rematerialized(part, module.config)
  length = jax.tree.leaves(xs)[0].shape[1]
  if module.config.remat == 'none' or length <= TILE:
    return step(module, carry, xs)
  whole = length // TILE * TILE
  cut = lambda x: x[:, :whole].reshape(x.shape[0], -1, TILE, *x.shape[2:])
  carry, ys = nn.scan(
      # carry: the part's; xs: one tile of each input, [B, C, ...].
      nn.remat(part, prevent_cse=False),
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=1,
      out_axes=1,
  )(module, carry, jax.tree.map(cut, xs))
  ys = jax.tree.map(lambda y: y.reshape(y.shape[0], whole, *y.shape[3:]), ys)
  if whole < length:
    carry, rest = step(module, carry, jax.tree.map(lambda x: x[:, whole:], xs))
    ys = jax.tree.map(lambda *y: jnp.concatenate(y, axis=1), ys, rest)
  return carry, ys


class Norm(nn.Module):
  """RMSNorm: x / rms(x) * (1 + scale), in float32, returned in x's dtype.

  `flax.linen.RMSNorm` keeps 1 + scale, which weight decay would pull to zero.
  """

  axis_name: str | None = 'embed'
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param(
        'scale',
        partitioned(nn.initializers.zeros_init(), self.axis_name),
        (x.shape[-1],),
    )
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * (1 + scale)).astype(x.dtype)


class Dense(nn.Module):
  """x W, no bias; parameters float32, product in `dtype`.

  `flax.linen.Dense`, but that the product is one of two matrices, whatever the
  axes of x: the gradient of W for an x of three axes would have its other
  factor transposed first, on a CPU the slower of the two. And that it adds up
  in float32.

  Attributes:
    features: output width.
    names: logical axes of W, input then output.
    dtype: compute dtype.
    gain: standard deviation of W times sqrt(input width).
    dot_general: makes the product, as in Flax; `optim.delta_dot_general` gives
      W the gradient of DGD. None: `jax.lax.dot_general`.
    draw: what W is drawn from, where several start equal; None: of its own.
  """

  features: int
  names: tuple[str | None, str | None]
  dtype: Any
  gain: float = 1.0
  dot_general: DotGeneral | None = None
  draw: Array | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    normal = nn.initializers.normal(self.gain / x.shape[-1] ** 0.5)

    def init(rng, shape, dtype):
      return normal(rng if self.draw is None else self.draw, shape, dtype)

    kernel = self.param(
        'kernel',
        partitioned(init, *self.names),
        (x.shape[-1], self.features),
    )
    y = (self.dot_general or jax.lax.dot_general)(
        x.astype(self.dtype).reshape(-1, x.shape[-1]),
        kernel.astype(self.dtype),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return y.astype(self.dtype).reshape(*x.shape[:-1], self.features)


class Mixer(nn.Module):
  """What the mixers of a block have in common: their Dense layers.

  Attributes:
    config: the model.
    dot_general: of `Dense`.
  """

  config: ModelConfig
  # By keyword, so that a mixer may have further fields without defaults.
  dot_general: DotGeneral | None = dataclasses.field(default=None, kw_only=True)

  def into_heads(
      self, features: int, name: str, draw: Array | None = None
  ) -> Dense:
    """A projection of the residual stream; `draw` as in `Dense`."""
    return Dense(
        features, ('embed', 'heads'), jnp.dtype(self.config.dtype),
        dot_general=self.dot_general, draw=draw, name=name,
    )

  def out_of_heads(self) -> Dense:
    """The projection back, `out`: what a layer adds, small in a deep model."""
    config = self.config
    return Dense(
        config.dim, ('heads', 'embed'), jnp.dtype(config.dtype),
        (2 * config.layers) ** -0.5, self.dot_general, name='out',
    )

  def tell(self, diagnostics: Mapping[str, Array]) -> None:
    """Keeps scalars under their names, for who asks for 'diagnostics'."""
    for name, value in diagnostics.items():
      # Flax's types want `_` to be the tuple that its default begins with.
      self.sow(  # pyright: ignore[reportArgumentType]
          'diagnostics', name, value, reduce_fn=lambda _, b: b
      )


def gate(
    module: Mixer,
    x: Array,
    name: str,
    *,
    bias: float | None,
    std: float | None = None,
) -> Array:
  """The logit of a gate a head, x W + b in float32.

  Args:
    module: the mixer that owns W and b.
    x: [B, T, D].
    name: W is `w_<name>` and b `bias_<name>`.
    bias: b at initialisation; None: there is none.
    std: standard deviation of W at initialisation; None: D^-1/2.

  Returns:
    [B, T, H].
  """
  init = nn.initializers.normal(x.shape[-1] ** -0.5 if std is None else std)
  shape = x.shape[-1], module.config.heads
  w = module.param(f'w_{name}', partitioned(init, 'embed', 'heads'), shape)
  logit = x.astype(jnp.float32) @ w
  if bias is None:
    return logit
  start = partitioned(nn.initializers.constant(bias), 'heads')
  return logit + module.param(f'bias_{name}', start, shape[1:])


def split_by_head(state: PyTree) -> PyTree:
  """A state whose memories [B, H, ., .] are split over the mesh as heads are.

  Every row and head owns its memories: split like them, never gathered.
  """
  return jax.tree.map(
      lambda w: constrain(w, 'batch', 'heads', 'memory', 'memory')
      if w.ndim == 4
      else w,
      state,
  )


def tap_init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """The token itself plus a little of each earlier one; [width, D]."""
  taps = 0.3 * jax.random.normal(rng, shape, dtype)
  return taps.at[0].add(1.0)


def recall_tap_init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """Taps of q, k and v streams that make a memory predict; [width, 3 D].

  A query sees the last width - 1 tokens through random taps; a key sees the
  tokens before its own through the same taps; a value is its own token. So from
  the first step on, the key of a token is the query of the token before it, and
  a memory that maps keys to values answers a query with what came next.
  """
  width, dim = shape[0], shape[1] // 3
  taps = jax.random.normal(rng, (width - 1, dim), dtype)
  none = jnp.zeros((1, dim), dtype)
  q = jnp.concatenate([taps, none])
  k = jnp.concatenate([none, taps])
  v = jnp.zeros((width, dim), dtype).at[0].set(1.0)
  return jnp.concatenate([q, k, v], axis=1)


class CausalConv(nn.Module):
  """Causal depthwise convolution over time, y_t = sum_i w_i x_{t-i}.

  Taps do not reach over a document's start. The last `width - 1` inputs are its
  state.

  Attributes:
    width: taps.
    init: (rng, shape, dtype) -> the taps [width, D], tap 0 the token itself.
    streams: how many streams of equal width stand side by side in D.
    shared: all streams are of one input, which is given (and kept) once.
    channels: logical axis of D.
  """

  width: int
  init: Callable[..., Array] = tap_init
  streams: int = 1
  shared: bool = False
  channels: str | None = 'heads'

  @nn.compact
  def __call__(
      self,
      x: Array,
      tail: Array | None,
      position: Array | None,
      present: Array | None = None,
  ) -> tuple[Array, Array]:
    """Convolves what comes next of a stream.

    Args:
      x: [B, T, D], or [B, T, D / streams] where it is shared.
      tail: the inputs before the first token, [B, width - 1, .]; None: zeros.
      position: [B, T] tokens since the document's start; None: the row is one
        document and `tail` is what came before it.
      present: [B, T] bool, false at padding, which the new tail leaves out;
        None: all.

    Returns:
      [B, T, D] and the new tail.
    """
    width, dim = self.width, x.shape[-1]
    taps = width, dim * self.streams if self.shared else dim
    kernel = self.param(
        'kernel', partitioned(self.init, None, self.channels), taps
    )
    if tail is None:
      tail = jnp.zeros((x.shape[0], width - 1, dim), x.dtype)
    full = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
    length = x.shape[1]
    kernel = kernel.astype(x.dtype)

    def convolve(full, kernel):
      y = 0
      for i in range(width):
        tap = full[:, width - 1 - i : width - 1 - i + length]
        if position is not None and i > 0:
          tap = jnp.where((position >= i)[..., None], tap, 0)
        y = y + kernel[i] * tap
      return y

    # One stream after the other: less to hold at a time.
    split = functools.partial(
        jnp.split, indices_or_sections=self.streams, axis=-1
    )
    inputs = [full] * self.streams if self.shared else split(full)
    y = jnp.concatenate(
        [convolve(*stream) for stream in zip(inputs, split(kernel))], axis=-1
    )
    if present is None:
      return y, full[:, length:]
    kept = jnp.pad(present, ((0, 0), (width - 1, 0)), constant_values=True)
    index = jnp.where(kept, jnp.arange(width - 1 + length), -1)
    latest = jnp.flip(jax.lax.top_k(index, width - 1)[0], axis=1)
    return y, jnp.take_along_axis(full, latest[..., None], axis=1)


class Mlp(nn.Module):
  """Two-layer GELU MLP, or SwiGLU; without bias.

  Attributes:
    hidden: hidden width F.
    dtype: compute dtype.
    gated: SwiGLU instead of GELU.
    depth_gain: gain of the output layer (1 / sqrt(2 layers) keeps the residual
      stream's size independent of depth).
    dot_general: of `Dense`.
  """

  hidden: int
  dtype: Any
  gated: bool = False
  depth_gain: float = 1.0
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def dense(features, names, name, gain=1.0):
      return Dense(
          features, names, self.dtype, gain, self.dot_general, name=name
      )

    up = dense(self.hidden, ('embed', 'mlp'), 'up')(x)
    if self.gated:
      gate = dense(self.hidden, ('embed', 'mlp'), 'gate')(x)
      hidden = nn.silu(gate) * up
    else:
      hidden = nn.gelu(up)
    return dense(
        x.shape[-1], ('mlp', 'embed'), 'down', self.depth_gain
    )(hidden)


def memory_param(module: nn.Module, name: str, **kwargs) -> Memory:
  """Declares the learned initial state of an inner memory.

  Args:
    module: the module that owns it.
    name: the memory's name; leaves are called `<name>_<layer>`.
    **kwargs: of `nested.memory.init`.

  Returns:
    The memory, leaves [H, ., .].
  """
  shapes = jax.eval_shape(lambda r: init_memory(r, **kwargs), jax.random.key(0))

  def leaf(layer):
    def init(rng, shape, dtype):
      del shape  # the memory's own
      return getattr(init_memory(rng, **kwargs), layer).astype(dtype)

    return module.param(
        f'{name}_{layer}',
        partitioned(init, 'heads', 'memory', 'memory'),
        getattr(shapes, layer).shape,
    )

  return type(shapes)(*map(leaf, shapes._fields))
