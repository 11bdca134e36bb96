"""Test-time training: memories that descend the gradient of |M(k) - v|^2.

A memory is an MLP of one or more matrices; a matrix with one row more than its
input is wide has its bias there. All gradients of a chunk of C tokens are taken
at the memory M_c before its first. With g_t = grad 1/2 |M_c(k_t) - v_t|^2, and
each query answered after its own token's write:

    TTT (arXiv 2407.04620):    M_t = M_c - tau_i sum_{c <= s <= t} eta_s g_s
    Titans (2501.00663):       S_t = mu_t S_{t-1} - theta_t g_t
                               M_t = alpha_t M_{t-1} + S_t

i is the place of t in its chunk and tau_i about 1 / (i + 1), so that TTT takes
one step along the mean of the gradients so far. TTT's memory is M(x) = x +
LN(f(x)), by which its target for f is v - k; Titans' is f itself. Titans writes
alpha_t = 1 - "alpha_t" and mu_t = "eta_t"; its theta_t holds the 2 of its loss
without the 1/2.

For every token a weight of the memory is a sum

    W_t = m_t W + s_t S + sum_j r_tj x_j^T u_j

of the two states that a chunk starts with and of what its tokens write (layer
input x_j, gradient u_j at the layer's output): `Mix`. Both rules are such sums,
and no weight of a single token is ever made.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd import decays
from hope_jax.kernels.dgd.products import Precision, column, matmul, transpose
from hope_jax.nested import levels
from hope_jax.types import Array, PyTree

Weights = tuple[Array, ...]  # [..., K or K + 1, F] of each layer, the first on


class Norm(NamedTuple):
  """Scale and shift of a memory's LayerNorm, [H, 1, V] each."""

  scale: Array
  bias: Array


class TttState(NamedTuple):
  """What a stream has written so far."""

  weights: Weights  # [B, H, ., .]
  # TTT: the gradients of the open chunk so far; Titans: S_t.
  momentum: Weights
  # The copy that gradients are taken at. None where it is `weights` (TTT).
  frozen: Weights | None
  phase: Array  # [B] int32, tokens into the chunk


class Mix(NamedTuple):
  """R sums as in the module docstring."""

  weights: Array  # m, [B, H, R, 1]
  momentum: Array  # s, [B, H, R, 1]
  writes: Array  # r, [B, H, R, C]


class Mixes(NamedTuple):
  """What the tokens of a chunk read, and what they leave (R = 1)."""

  read: Mix
  weights: Mix
  momentum: Mix


class Tokens(NamedTuple):
  """What the layer reads; in a tile, [B, H, C, .] and gates [B, H, C]."""

  q: Array  # [B, T, H, K]
  k: Array
  v: Array  # [B, T, H, V]
  gates: PyTree  # leaves [B, T, H], for the rule


def layer_norm(x: Array, norm: Norm, eps: float = 1e-6) -> Array:
  """(x - mean) / sqrt(variance + eps) * scale + bias, over the last axis."""
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
  return x * norm.scale + norm.bias


def answer(x: Array, z: Array, norm: Norm | None) -> Array:
  """M(x) where the last layer makes z: x + LN(z), or z without a norm."""
  return z if norm is None else x + layer_norm(z, norm)


def _rows(x: Array, weight: Array) -> Array:
  """x, with a one for the bias where the weight has a row for it."""
  if x.shape[-1] == weight.shape[-2]:
    return x
  return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def _chain(weights: Weights, x: Array, product: Callable) -> Array:
  """The MLP: product(i, input of layer i) -> its output; GELU between."""
  for i, weight in enumerate(weights):
    x = product(i, _rows(x if i == 0 else jax.nn.gelu(x), weight))
  return x


def gradients(
    weights: Weights,
    k: Array,
    v: Array,
    norm: Norm | None,
    precision: Precision,
) -> tuple[Weights, Weights]:
  """The gradient of 1/2 |M(k) - v|^2 as what each layer is written with.

  Args:
    weights: the memory, [..., K, F] of each layer.
    k: keys, [..., C, K].
    v: values, [..., C, V].
    norm: of the memory.
    precision: of the products.

  Returns:
    Of each layer its input x [..., C, K] and the gradient u [..., C, F] at its
    output: the token's gradient of the weight is x^T u.
  """
  heads = jnp.broadcast_shapes(k.shape[:-2], weights[0].shape[:-2])
  offsets = tuple(
      jnp.zeros((*heads, k.shape[-2], w.shape[-1]), w.dtype) for w in weights
  )

  def loss(offsets):
    inputs = []

    def product(i, x):
      inputs.append(x)
      return matmul(x, weights[i], precision) + offsets[i]

    error = answer(k, _chain(weights, k, product), norm) - v
    return 0.5 * jnp.sum(error * error), tuple(inputs)

  u, inputs = jax.grad(loss, has_aux=True)(offsets)
  return inputs, u


def _read(mix, weights, momentum, writes, q, norm, precision):
  """Each query [B, H, C, K] to the memory of its own mix, [B, H, C, V]."""
  inputs, u = writes

  def product(i, x):
    scores = mix.writes * matmul(x, transpose(inputs[i]), precision)
    return (
        mix.weights * matmul(x, weights[i], precision)
        + mix.momentum * matmul(x, momentum[i], precision)
        + matmul(scores, u[i], precision)
    )

  return answer(q, _chain(weights, q, product), norm)


def _leave(mix, weights, momentum, writes, precision) -> Weights:
  """The weights of a mix with R = 1."""
  return tuple(
      mix.weights * w + mix.momentum * s
      + matmul(transpose(transpose(mix.writes) * x), u, precision)
      for w, s, x, u in zip(weights, momentum, *writes)
  )


def _lower(size: int) -> Array:
  """[C, C] bool: s <= t, rows t, columns s."""
  index = jnp.arange(size)
  return index[:, None] >= index[None, :]


class TttGates(NamedTuple):
  """The gates of TTT, [B, T, H] or a tile's."""

  eta: Array  # inner learning rates
  tau: Array  # of the token's place in its chunk
  closes: Array  # 1 at the last place of a chunk, else 0


def ttt_mixes(gates: TttGates, valid: Array) -> Mixes:
  """M_t = M_c - tau_i (G + sum_s eta_s g_s), G from earlier calls.

  Args:
    gates: [B, H, C] each.
    valid: [B, 1, C], 0 where there is no token.

  Returns:
    The mixes. Where the tokens close the chunk, M_c becomes the last M_t and G
    zero.
  """
  eta = valid * gates.eta
  size = eta.shape[-1]
  writes = jnp.where(_lower(size), eta[..., None, :], 0)
  tau = column(gates.tau)
  closes = jnp.max(valid * gates.closes, axis=-1)[..., None, None]
  step = closes * tau[..., -1:, :]
  one = jnp.ones_like(closes)
  everything = eta[..., None, :]
  return Mixes(
      Mix(jnp.ones_like(tau), -tau, -tau * writes),
      Mix(one, -step, -step * everything),
      Mix(0 * one, 1 - closes, (1 - closes) * everything),
  )


class TitansGates(NamedTuple):
  """The gates of Titans, [B, T, H] or a tile's."""

  theta: Array  # inner learning rates
  log_mu: Array  # momentum, <= 0
  log_alpha: Array  # retention, <= 0


def titans_mixes(gates: TitansGates, valid: Array) -> Mixes:
  """S_t = mu_t S_{t-1} - theta_t g_t and M_t = alpha_t M_{t-1} + S_t.

  Args:
    gates: [B, H, C] each.
    valid: [B, 1, C], 0 where there is no token.
  """
  theta, log_mu, log_alpha = (valid * x for x in gates)
  present = jnp.broadcast_to(valid, theta.shape)
  kept = decays.decay(log_alpha)
  flowing = decays.flow(kept, log_mu, present, 'float32')
  write = -theta[..., None, :]

  def mix(enter, inflow, reach):
    return Mix(enter, inflow, reach * write)

  leaves, keeps = decays.leave(flowing.decay)
  return Mixes(
      mix(
          decays.after(kept)[0],
          *decays.flow_after(flowing, kept.alpha, last=False),
      ),
      mix(
          decays.leave(kept)[0],
          *decays.flow_after(flowing, kept.alpha, last=True),
      ),
      mix(0 * leaves, leaves, keeps),
  )


def layer(
    initial: Weights,
    tokens: Tokens,
    state: TttState | None = None,
    *,
    mixes: Callable[[PyTree, Array], Mixes],
    chunk: int,
    frozen: bool,
    norm: Norm | None = None,
    starts: Array | None = None,
    present: Array | None = None,
    precision: Precision = 'float32',
) -> tuple[Array, TttState, dict[str, Array]]:
  """Reads and writes a sequence.

  Args:
    initial: the memory that documents start from, [H, ., .] of each layer.
    tokens: streams and gates.
    state: what earlier calls have left; None starts from `initial`.
    mixes: the rule, `ttt_mixes` or `titans_mixes`.
    chunk: tokens C whose gradients are taken at one copy of the memory.
    frozen: whether the rule's weights move within a chunk, so that this copy
      is kept beside them.
    norm: of the memory; None: neither norm nor residual path.
    starts: [B, T] bool, where a document starts and the memory restarts.
    present: [B, T] bool, false at padding, which writes and forgets nothing.
    precision: of the products.

  Returns:
    Outputs [B, T, H, V] (zero at padding; NaN in rows that do not lie on the
    grid, see `levels.REASONS`), the state, and the number of such rows.
  """
  batch, length = tokens.q.shape[:2]
  grid = levels.token_grid(
      batch, length, tile=chunk, period=chunk,
      phase=None if state is None else state.phase, starts=starts,
      present=present,
  )
  fresh = jax.tree.map(
      lambda w: jnp.broadcast_to(w, (batch, *w.shape)), initial
  )
  zeros = jax.tree.map(jnp.zeros_like, fresh)
  if state is None:
    state = TttState(fresh, zeros, fresh if frozen else None, grid.phase)

  def body(carry, xs):
    """carry: weights, momentum and frozen; xs: Tokens, valid and flags [B]."""
    weights, momentum, copy = carry
    tokens, valid, opens, reset = xs
    weights, momentum = levels.select(
        reset, (fresh, zeros), (weights, momentum)
    )
    if frozen:
      copy = levels.select(opens, weights, copy)
    mixed = mixes(tokens.gates, valid.astype(tokens.q.dtype))
    writes = gradients(
        copy if frozen else weights, tokens.k, tokens.v, norm, precision
    )
    start = weights, momentum, writes
    o = _read(mixed.read, *start, tokens.q, norm, precision)
    weights, momentum = (
        _leave(mix, *start, precision)
        for mix in (mixed.weights, mixed.momentum)
    )
    return (weights, momentum, copy), jnp.moveaxis(o, 1, 2)

  by_head = lambda x: jnp.moveaxis(levels.to_tiles(x, grid), 3, 2)
  opens = (grid.opens >= 0) & (grid.opens % chunk == 0)
  valid = levels.split(grid.valid, grid.tile)[:, :, None]
  xs = jax.tree.map(by_head, tokens), valid, opens.T, grid.reset.T
  (weights, momentum, copy), o = levels.scan_tiles(
      body, (state.weights, state.momentum, state.frozen), xs, grid
  )
  o = levels.from_tiles(o, grid, length)
  reason = levels.reason_of(grid, starts)
  o, poisoned = levels.poison(o, grid.overflow, reason)
  return o, TttState(weights, momentum, copy, grid.phase), poisoned
