"""The DGD recurrence a chunk at a time: exact, and made of matrix products.

For a chunk of C tokens that starts from state S (rows are tokens):

    a = log alpha      c = cumsum(a)      p = c - a  (decay before token t)
    D_ts = exp(p_t - c_s) for s < t, else 0       (see `decays`)
    L = diag(eta) (D * K K^T)
    E = (I + L)^{-1} eta (U - e^p K S)          e_t = eta_t (u_t - M_{t-1} k_t)
    pre:  O = e^p Q S + (D * Q K^T) E
    post: O = e^c Q S + (D' * Q K^T) E,         D'_ts = exp(c_t - c_s), s <= t
    S' = e^{c_C} S + (e^{c_C - c} K)^T E

Every exponent is <= 0 and nothing is divided by alpha, so that retention near
zero is exact. Derivation: put M_{t-1} = e^{p_t} M_0 + sum_{s<t} e^{p_t - c_s}
e_s k_s^T into e_t; what stands before E is unit lower triangular.

`chunk_step` is the one place where this is written; the scan below, the layer
in `nested/` and the accelerator kernels all call it.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import Array

Read = Literal['pre', 'post', 'chunk', 'none']


class Decay(NamedTuple):
  """What is left of a state after each token, and of each write."""

  enter: Array  # [..., C, 1], of the state that entered: e^c
  keep: Array  # [..., C, C], rows t, columns s: see `decays`


class Flow(NamedTuple):
  """How momentum reaches a state: S_t = mu_t S_{t-1} + (1 - mu_t) w_t k_t^T."""

  share: Array  # [..., C, 1], 1 - mu
  decay: Decay  # of the momentum itself
  reach: Array  # [..., C, C], how much of write s has arrived in M_t
  inflow: Array  # [..., C, 1], how much of the momentum that entered has


def matmul(x: Array, y: Array, precision: str) -> Array:
  """x @ y over the last two axes, accumulated in at least float32."""
  if precision == 'bf16':
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
  return jnp.matmul(x, y, precision='highest')


def transpose(x: Array) -> Array:
  """Swaps the last two axes."""
  return jnp.swapaxes(x, -1, -2)


def inverse_unit_lower(lower: Array) -> Array:
  """Returns (I + lower)^{-1} for strictly lower triangular [..., C, C].

  Doubles the size of exact diagonal blocks: with T_b the inverse of the b x b
  blocks and L_b what joins two of them, T_2b = T_b - T_b L_b T_b. Every T_b is
  a true inverse, so keys that repeat cannot blow up powers of `lower` as they
  do in a Neumann series.
  """
  size = lower.shape[-1]
  index = jnp.arange(size)
  inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
  block = 1
  while block < size:
    row, column = index[:, None] // block, index[None, :] // block
    joins = (row // 2 == column // 2) & (row == column + 1)
    middle = jnp.where(joins, lower, 0)
    if block == 1:
      inverse = inverse - middle
    else:
      inverse = inverse - jnp.matmul(
          inverse,
          jnp.matmul(middle, inverse, precision='highest'),
          precision='highest',
      )
    block *= 2
  return inverse


def prefix(x: Array) -> Array:
  """Cumulated sums over the last axis, as a product with a triangle of ones."""
  index = jnp.arange(x.shape[-1])
  upto = (index[:, None] <= index[None, :]).astype(x.dtype)
  return jnp.matmul(x, upto, precision='highest')


@jax.custom_jvp
def between(x: Array) -> Array:
  """Sums of x [..., C] over (s, t], [..., C, C], rows t, columns s <= t.

  As a difference of two cumulated sums they would lose the digits that the sums
  share, so what rounding has taken from the sums is cumulated too and put back.
  The derivative sums its own terms, by a product with a triangle.
  """
  total = prefix(x)
  earlier = jnp.concatenate(
      [jnp.zeros_like(total[..., :1]), total[..., :-1]], axis=-1
  )
  lost = prefix(x - (total - earlier))
  return (total[..., :, None] - total[..., None, :]) + (
      lost[..., :, None] - lost[..., None, :]
  )


@between.defjvp
def _between_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  index = jnp.arange(x.shape[-1])
  reached = index[:, None] >= index[None, :]
  later = jnp.where(reached.T, 0, dx[..., :, None])
  ones = jnp.broadcast_to(reached.astype(x.dtype), later.shape)
  return between(x), jnp.matmul(ones, later, precision='highest')


def decays(log_decay: Array) -> Array:
  """What is kept from token s to token t: exp of the sum over (s, t].

  Args:
    log_decay: [..., C], <= 0 and finite.

  Returns:
    [..., C, C], rows t, columns s; 1 where s = t, and 0 where s > t.
  """
  index = jnp.arange(log_decay.shape[-1])
  reached = index[:, None] >= index[None, :]
  # Masked before exp: what is not reached would be exp of a positive number.
  return jnp.where(
      reached, jnp.exp(jnp.where(reached, between(log_decay), 0)), 0
  )


def decay(log_alpha: Array) -> Decay:
  """`Decay` of log retentions [..., C]; shared by states that decay alike."""
  enter = jnp.exp(prefix(log_alpha))
  return Decay(enter[..., None], decays(log_alpha))


def flow(kept: Decay, log_mu: Array, present: Array) -> Flow:
  """`Flow` of momentum with log gates [..., C] into a state.

  Args:
    kept: decay of the state.
    log_mu: <= 0.
    present: [..., C], 1; or 0: M_t takes no S_t (and log_mu must be 0).

  Returns:
    With A = kept.keep and B that of the momentum, reach = A B and inflow =
    A e^m, both summed over tokens that are present.
  """
  own = decay(log_mu)
  taken = kept.keep * present[..., None, :]
  both = jnp.matmul(
      taken, jnp.concatenate([own.keep, own.enter], axis=-1),
      precision='highest',
  )
  share = -jnp.expm1(log_mu)[..., None]
  return Flow(share, own, both[..., :-1], both[..., -1:])


def shift(x: Array, first: float = 0) -> Array:
  """Rows one later, a row of `first` ahead: 'after token t - 1'."""
  ahead = jnp.full_like(x[..., :1, :], first)
  return jnp.concatenate([ahead, x[..., :-1, :]], axis=-2)


Groups = tuple[tuple[int, float], ...]


def chunk_step(
    state: Array,
    q: Array | None,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array | Decay,
    *,
    read: Read,
    erase: bool = True,
    momentum: tuple[Array, Flow] | None = None,
    groups: Groups | None = None,
    precision: str = 'float32',
) -> tuple[Array | None, Array, Array | None]:
  """One chunk of the recurrence, exactly; leading axes are batched.

  Args:
    state: state at the chunk's start, [..., K, V], float32 or float64.
    q: queries [..., C, K]; None where read is 'none'.
    k: keys, [..., C, K].
    u: write values, [..., C, V].
    eta: write strengths, [..., C]; 0 leaves a token out.
    log_alpha: log retention, [..., C], <= 0; 0 keeps all; or its `decay`.
    read: which state a query sees: 'pre', 'post', 'chunk' (the chunk's first
      state), or 'none' for no output.
    erase: whether the delta decay -eta k k^T acts (DGD), or only alpha (plain
      gradient descent with weight decay).
    momentum: state [..., K, V] and `flow` of the write's momentum, or None.
    groups: (columns, share) of memories that stand side by side in V and differ
      in their rate, share * eta; the outputs are those of the first. None: one.
    precision: 'float32', or 'bf16' for bfloat16 operands of the large products.

  Returns:
    Outputs [..., C, V of the first group] or None, the new state, the new
    momentum state or None.
  """
  groups = groups or ((u.shape[-1], 1.0),)
  kept = log_alpha if isinstance(log_alpha, Decay) else decay(log_alpha)
  if momentum is not None:
    return _momentum_chunk_step(
        state, q, k, u, eta, kept, *momentum, read=read, erase=erase,
        groups=groups, precision=precision,
    )
  enter, keep = kept
  enter_pre, keep_pre = shift(enter, 1), shift(keep)
  rate = _spread(eta, groups)
  # One product serves keys and queries: rows of both against the same operand.
  reads = read != 'none'
  rows = jnp.concatenate([k, q], axis=-2) if reads else k
  retrieved = q_retrieved = scores = None
  if erase or reads:
    retrieved, q_retrieved = _split(matmul(rows, state, precision), k)
    gram, scores = _split(matmul(rows, transpose(k), precision), k)
  e = rate * u
  if erase:
    lower = eta[..., None] * keep_pre * gram
    e = _solve(
        lower, e - rate * enter_pre * retrieved, groups, precision
    )
  o = None
  width = groups[0][0]
  if read == 'chunk':
    o = q_retrieved[..., :width]
  elif reads:
    reader, kept = (enter_pre, keep_pre) if read == 'pre' else (enter, keep)
    o = reader * q_retrieved[..., :width]
    o = o + matmul(kept * scores, e[..., :width], precision)
  new = enter[..., -1:, :] * state
  new = new + matmul(transpose(keep[..., -1, :, None] * k), e, precision)
  return o, new, None


def _split(x: Array, k: Array) -> tuple[Array, Array]:
  """Rows of the keys, rows of the queries."""
  return x[..., : k.shape[-2], :], x[..., k.shape[-2] :, :]


def _spread(eta: Array, groups: Groups) -> Array:
  """eta [..., C] as the rate of every column, [..., C, 1 or V]."""
  eta = eta[..., None]
  if len(groups) == 1:
    return eta * groups[0][1]
  shares = [jnp.full((n,), share, eta.dtype) for n, share in groups]
  return eta * jnp.concatenate(shares)


def _solve(lower: Array, rhs: Array, groups: Groups, precision: str) -> Array:
  """(I + share * lower)^{-1} rhs, each group of columns with its share."""
  shares = sorted({share for _, share in groups}, reverse=True)
  scaled = jnp.stack([share * lower for share in shares])
  inverses = inverse_unit_lower(jax.lax.stop_gradient(scaled))
  parts, start = [], 0
  for width, share in groups:
    i = shares.index(share)
    part = rhs[..., start : start + width]
    parts.append(unit_lower_solve(scaled[i], inverses[i], part, precision))
    start += width
  return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def unit_lower_solve(
    lower: Array, inverse: Array, rhs: Array, precision: str
) -> Array:
  """x with (I + lower) x = rhs, given the inverse.

  Differentiated as a linear system, (I + lower) dx = d rhs - (d lower) x: the
  backward pass is one product with the transposed inverse, d lower = -(d rhs)
  x^T, instead of a walk back through the products that made the inverse.
  """
  del lower
  return matmul(inverse, rhs, precision)


@unit_lower_solve.defjvp
def _unit_lower_solve_jvp(precision, primals, tangents):
  lower, inverse, rhs = primals
  d_lower, _, d_rhs = tangents
  x = unit_lower_solve(lower, inverse, rhs, precision)
  residual = d_rhs - matmul(d_lower, x, precision)
  return x, unit_lower_solve(lower, inverse, residual, precision)


def _momentum_chunk_step(
    state, q, k, u, eta, kept, velocity, flow, *, read, erase, groups, precision
):
  """`chunk_step` with momentum: M_t = M_{t-1} (alpha I - eta k k^T) + S_t.

  With A_ij = exp(c_i - c_j) and B_js = exp(m_j - m_s) lower triangular (m the
  cumulated log mu), G = A B is how much of write s has reached M_i, and
  g_i = sum_j A_ij e^{m_j} how much of the momentum that entered the chunk (both
  sums over j where a token is present). With
  w_s = (1 - mu_s) eta_s u_s and d_s = eta_s M_{s-1} k_s,

      M_i = e^{c_i} M_0 + g_i S_0 + sum_{s<=i} (G_is w_s - A_is d_s) k_s^T,

  and d solves a unit lower triangular system, as without momentum.
  """
  enter, keep = kept
  _, (enter_flow, carry), reach, inflow = flow
  rate = _spread(eta, groups)
  w = rate * flow.share * u
  keep_pre, reach_pre, inflow_pre = shift(keep), shift(reach), shift(inflow)
  enter_pre = shift(enter, 1)
  reads = read != 'none'
  rows = jnp.concatenate([k, q], axis=-2) if reads else k
  if erase or reads:
    # Rows against [M_0 | S_0] and against the keys, each in one product.
    states = jnp.concatenate([state, velocity], axis=-1)
    both = matmul(rows, states, precision)
    of_state, of_momentum = jnp.split(both, 2, axis=-1)
    (k_state, q_state), (k_flow, q_flow) = _split(of_state, k), _split(
        of_momentum, k
    )
    gram, scores = _split(matmul(rows, transpose(k), precision), k)
  if erase:
    retrieved = enter_pre * k_state + inflow_pre * k_flow
    retrieved += matmul(reach_pre * gram, w, precision)
    d = _solve(
        eta[..., None] * keep_pre * gram, rate * retrieved, groups, precision
    )
  o = None
  width = groups[0][0]
  if read == 'chunk':
    o = q_state[..., :width]
  elif reads:
    reader, flowing, kept, reached = (
        (enter_pre, inflow_pre, keep_pre, reach_pre)
        if read == 'pre'
        else (enter, inflow, keep, reach)
    )
    o = reader * q_state[..., :width] + flowing * q_flow[..., :width]
    o += matmul(reached * scores, w[..., :width], precision)
    if erase:
      o -= matmul(kept * scores, d[..., :width], precision)
  writes = reach[..., -1, :, None] * w
  if erase:
    writes -= keep[..., -1, :, None] * d
  # Both states gain keys times values: one product.
  gains = jnp.concatenate([writes, carry[..., -1, :, None] * w], axis=-1)
  gains = matmul(transpose(k), gains, precision)
  gain, gain_momentum = jnp.split(gains, 2, axis=-1)
  new = enter[..., -1:, :] * state + gain
  new += inflow[..., -1, :, None] * velocity
  new_velocity = enter_flow[..., -1, :, None] * velocity + gain_momentum
  return o, new, new_velocity


def chunk_scan(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    *,
    read: Read,
    tile: int,
    precision: str,
) -> tuple[Array, Array]:
  """The recurrence over [B, T, H, ...] as one scan over tiles of `chunk_step`.

  Shapes as in `api.dgd_recurrence`. The body is rematerialised: the backward
  pass keeps one state a tile and recomputes the rest.
  """
  length = k.shape[1]

  def body(state, xs):
    """carry: the state [B, H, K, V]; xs: a tile of each input [B, H, C, .]."""
    o, state, _ = chunk_step(state, *xs, read=read, precision=precision)
    return state, o

  xs = tuple(tiles(x, tile) for x in (q, k, u, eta, log_alpha))
  state, o = jax.lax.scan(jax.checkpoint(body), state, xs)
  return untile(o, length), state


def tiles(x: Array, tile: int) -> Array:
  """[B, T, H, ...] -> [N, B, H, tile, ...]; the end is padded with zeros.

  A padded token has eta = 0 and log alpha = 0: it writes and forgets nothing.
  """
  b, t = x.shape[:2]
  n = -(-t // tile)
  x = jnp.pad(x, [(0, 0), (0, n * tile - t)] + [(0, 0)] * (x.ndim - 2))
  x = x.reshape(b, n, tile, *x.shape[2:])
  return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, 3)


def untile(x: Array, length: int) -> Array:
  """[N, B, H, tile, V] -> [B, length, H, V], the inverse of `tiles`."""
  x = jnp.moveaxis(jnp.moveaxis(x, 3, 2), 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
