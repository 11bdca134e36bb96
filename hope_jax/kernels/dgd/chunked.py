"""The DGD recurrence a chunk at a time: exact, and made of matrix products.

For a chunk of C tokens that starts from state S (rows are tokens):

    a = log alpha      c = cumsum(a)      p = c - a  (decay before token t)
    D_ts = exp(p_t - c_s) for s < t, else 0        (see `decay`)
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

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.decays import (
  Decay,
  Flow,
  after,
  decay,
  flow_after,
  leave,
)
from hope_jax.kernels.dgd.products import (
  Precision,
  column,
  inverse_unit_lower,
  matmul,
  transpose,
  unit_lower_solve,
)
from hope_jax.kernels.dgd.reference import Read
from hope_jax.types import Array

# (columns, share) of memories that stand side by side in V.
Shares = tuple[tuple[int, float], ...]


def chunk_step(
    state: Array,
    q: Array | None,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array | Decay,
    *,
    read: Read,
    erase: bool | Array = True,
    momentum: tuple[Array, Flow] | None = None,
    shares: Shares | None = None,
    precision: Precision = 'float32',
    inverse: Array | None = None,
) -> tuple[Array | None, Array, Array | None]:
  """One chunk of the recurrence, exactly; leading axes are batched.

  Args:
    state: state at the chunk's start, [..., K, V], float32 or float64.
    q: queries [..., C, K]; None: nothing is read.
    k: keys, [..., C, K].
    u: write values, [..., C, V].
    eta: write strengths, [..., C]; 0 leaves a token out.
    log_alpha: log retention, [..., C], <= 0; 0 keeps all; or its `decay`.
    read: which state a query sees: 'pre', 'post' or 'chunk' (the chunk's first
      state).
    erase: whether the delta decay -eta k k^T acts (DGD), or only alpha (plain
      gradient descent with weight decay); or 1 and 0, [..., 1, 1], head by
      head.
    momentum: state [..., K, V] and `flow` of the write's momentum, or None.
    shares: (columns, share) of memories that stand side by side in V and differ
      in their rate, share * eta; outputs are of the first. None: one memory.
    precision: 'float32', or 'bf16' for bfloat16 operands of the large products.
    inverse: `system_inverse`, where it is known (one memory, no momentum).

  Returns:
    Outputs [..., C, V of the first memory] or None, the new state, the new
    momentum state or None.
  """
  shares = shares or ((u.shape[-1], 1.0),)
  kept = log_alpha
  if not isinstance(kept, Decay):
    kept = decay(kept, precision)
  eta = column(eta)
  if momentum is not None:
    return _momentum_chunk_step(
        state, q, k, u, eta, kept, *momentum, read=read, erase=erase,
        shares=shares, precision=precision,
    )
  # One product serves keys and queries: rows of both against the same operand.
  reads = q is not None
  decays = erase is not False
  rows = jnp.concatenate([k, q], axis=-2) if reads else k
  if decays or reads:
    retrieved, q_retrieved = _split(matmul(rows, state, precision), k)
    gram, scores = _split(matmul(rows, transpose(k), precision), k)
  x = u - _times(erase, kept.enter) * retrieved if decays else u
  e = _scaled(eta * x, shares)
  if decays:
    lower = _times(erase, eta) * (kept.keep * gram)
    e = _solve(lower, e, shares, precision, inverse)
  o = None
  width = shares[0][0]
  if read == 'chunk':
    o = q_retrieved[..., :width]
  elif reads:
    enter, keep = kept[:2] if read == 'pre' else after(kept)
    o = enter * q_retrieved[..., :width]
    o = o + matmul(keep * scores, e[..., :width], precision)
  enter, keep = leave(kept)
  new = enter * state + matmul(_weighted(k, keep), e, precision)
  return o, new, None


def _times(erase: bool | Array, x: Array) -> Array:
  """x for the heads that erase."""
  return x if erase is True else erase * x


def _split(x: Array, k: Array) -> tuple[Array, Array]:
  """Rows of the keys, rows of the queries."""
  return x[..., : k.shape[-2], :], x[..., k.shape[-2] :, :]


def _weighted(k: Array, weight: Array) -> Array:
  """K^T with each token's column times its weight [..., 1, C]."""
  return transpose(column(weight[..., 0, :]) * k)


def _scaled(x: Array, shares: Shares) -> Array:
  """x [..., C, V] with the columns of each memory times its share."""
  if all(share == 1.0 for _, share in shares):
    return x
  factors = [jnp.full((1, n), share, x.dtype) for n, share in shares]
  return x * jnp.concatenate(factors, axis=-1)


def system_inverse(
    k: Array, eta: Array, log_alpha: Array, precision: Precision
) -> Array:
  """(I + L)^{-1} of a chunk, [..., C, C]; it does not depend on the state."""
  gram = matmul(k, transpose(k), precision)
  lower = column(eta) * (decay(log_alpha, precision).keep * gram)
  return inverse_unit_lower(lower, precision)


def _solve(
    lower: Array,
    rhs: Array,
    shares: Shares,
    precision: Precision,
    inverse: Array | None = None,
) -> Array:
  """(I + share * lower)^{-1} rhs, the columns of each memory with its share."""
  if inverse is not None:
    return unit_lower_solve(lower, inverse, rhs, precision)
  scaled = {share: share * lower for _, share in shares}
  inverses = {
      share: inverse_unit_lower(jax.lax.stop_gradient(x), precision)
      for share, x in scaled.items()
  }
  parts, start = [], 0
  for width, share in shares:
    part = rhs[..., start : start + width]
    parts.append(
        unit_lower_solve(scaled[share], inverses[share], part, precision)
    )
    start += width
  return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _momentum_chunk_step(
    state, q, k, u, eta, kept, velocity, flowing, *, read, erase, shares,
    precision,
):
  """`chunk_step` with momentum: M_t = M_{t-1} (alpha I - eta k k^T) + S_t.

  With A_ij = exp(c_i - c_j) and B_js = exp(m_j - m_s) lower triangular (m the
  cumulated log mu), G = A B is how much of write s has reached M_i, and
  g_i = sum_j A_ij e^{m_j} how much of the momentum that entered the chunk (both
  sums over j where a token is present). With
  w_s = (1 - mu_s) eta_s u_s and d_s = eta_s M_{s-1} k_s,

      M_i = e^{c_i} M_0 + g_i S_0 + sum_{s<=i} (G_is w_s - A_is d_s) k_s^T,

  with d = 0 where nothing is erased. d solves a unit lower triangular system,
  as without momentum.
  """
  w = _scaled(eta * flowing.share * u, shares)
  reads, decays = q is not None, erase is not False
  rows = jnp.concatenate([k, q], axis=-2) if reads else k
  if decays or reads:
    # Rows against [M_0 | S_0] and against the keys, each in one product.
    states = jnp.concatenate([state, velocity], axis=-1)
    both = matmul(rows, states, precision)
    of_state, of_momentum = jnp.split(both, 2, axis=-1)
    (k_state, q_state), (k_flow, q_flow) = _split(of_state, k), _split(
        of_momentum, k
    )
    gram, scores = _split(matmul(rows, transpose(k), precision), k)
  if decays:
    retrieved = kept.enter * k_state + flowing.inflow * k_flow
    retrieved += matmul(flowing.reach * gram, w, precision)
    eta = _times(erase, eta)
    rhs = _scaled(eta * retrieved, shares)
    d = _solve(eta * kept.keep * gram, rhs, shares, precision)
  o = None
  width = shares[0][0]
  if read == 'chunk':
    o = q_state[..., :width]
  elif reads:
    if read == 'pre':
      (enter, keep), inflow, reach = kept[:2], flowing.inflow, flowing.reach
    else:
      enter, keep = after(kept)
      inflow, reach = flow_after(flowing, kept.alpha, last=False)
    o = enter * q_state[..., :width] + inflow * q_flow[..., :width]
    o += matmul(reach * scores, w[..., :width], precision)
    if decays:
      o -= matmul(keep * scores, d[..., :width], precision)
  enter, keep = leave(kept)
  inflow, reach = flow_after(flowing, kept.alpha, last=True)
  enter_flow, keep_flow = leave(flowing.decay)
  # What the writes add to both states: the values are the same, one product.
  weighted = [_weighted(k, reach), _weighted(k, keep_flow)]
  gains = matmul(jnp.concatenate(weighted, axis=-2), w, precision)
  gain, gain_flow = jnp.split(gains, 2, axis=-2)
  new = enter * state + inflow * velocity + gain
  if decays:
    new -= matmul(_weighted(k, keep), d, precision)
  return o, new, enter_flow * velocity + gain_flow


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
    erase: bool,
    precision: Precision,
) -> tuple[Array, Array]:
  """The recurrence over [B, T, H, ...] as one scan over tiles of `chunk_step`.

  Shapes as in `api.dgd_recurrence`. The body is rematerialised: the backward
  pass keeps one state a tile and recomputes the rest.
  """
  length = k.shape[1]

  def body(state, xs):
    """carry: the state [B, H, K, V]; xs: a tile of each input [B, H, C, .]."""
    o, state, _ = chunk_step(
        state, *xs, read=read, erase=erase, precision=precision
    )
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
