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

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import Array

Read = Literal['pre', 'post', 'chunk', 'none']


class Decay(NamedTuple):
  """What is left, just before each token, of the state and of each write."""

  enter: Array  # [..., C, 1], of the state that entered: e^p
  keep: Array  # [..., C, C], of the write of token s < t; else 0
  alpha: Array  # [..., C, 1], the token's own retention


class Flow(NamedTuple):
  """How momentum reaches a state: S_t = mu_t S_{t-1} + (1 - mu_t) w_t k_t^T."""

  share: Array  # [..., C, 1], 1 - mu
  decay: Decay  # of the momentum itself
  present: Array  # [..., C, 1], whether there is a token
  reach: Array  # [..., C, C], how much of write s has arrived in M_{t-1}
  inflow: Array  # [..., C, 1], how much of the momentum that entered has


def matmul(x: Array, y: Array, precision: str) -> Array:
  """x @ y over the last two axes, accumulated in at least float32.

  With 'bf16' the operands of the product and of its two derivatives are
  bfloat16, for which forward mode is not defined.
  """
  if x.ndim > 3 and x.shape[:-2] == y.shape[:-2]:  # kernels batch over one axis
    flat = [a.reshape(-1, *a.shape[-2:]) for a in (x, y)]
    product = matmul(*flat, precision)
    return product.reshape(*x.shape[:-2], *product.shape[-2:])
  if precision == 'bf16':
    return _bf16_matmul(x, y)
  return jnp.matmul(x, y, precision='highest')


@jax.custom_vjp
def _bf16_matmul(x: Array, y: Array) -> Array:
  return _bf16_matmul_fwd(x, y)[0]


def _bf16_matmul_fwd(x, y):
  operands = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
  product = jnp.matmul(*operands, preferred_element_type=jnp.float32)
  # Of the arguments themselves only the dtypes are needed.
  return product, (*operands, x[..., :0], y[..., :0])


def _bf16_matmul_bwd(residuals, d):
  *operands, like_x, like_y = residuals
  x, y = operands
  d = d.astype(jnp.bfloat16)

  def gradient(subscripts, a, b, of, like):
    g = jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
    # Axes that were broadcast are summed.
    g = g.sum(range(g.ndim - of.ndim))
    wide = [i for i in range(of.ndim) if of.shape[i] < g.shape[i]]
    return g.sum(wide, keepdims=True).astype(like.dtype)

  return (
      gradient('...mn,...kn->...mk', d, y, x, like_x),
      gradient('...mk,...mn->...kn', x, d, y, like_y),
  )


_bf16_matmul.defvjp(_bf16_matmul_fwd, _bf16_matmul_bwd)


def transpose(x: Array) -> Array:
  """Swaps the last two axes."""
  return jnp.swapaxes(x, -1, -2)


def inverse_unit_lower(lower: Array, precision: str = 'float32') -> Array:
  """Returns (I + lower)^{-1} for strictly lower triangular [..., C, C].

  Doubles the size of exact diagonal blocks: with T_b the inverse of the b x b
  blocks and L_b what joins two of them, T_2b = T_b - T_b L_b T_b. Every T_b is
  a true inverse, so keys that repeat cannot blow up powers of `lower` as they
  do in a Neumann series.

  With bfloat16 products the result is good to two digits. A Newton step
  T + T (I - (I + L) T), its residual in twice bfloat16, makes that four.
  """
  size = lower.shape[-1]
  index = jnp.arange(size)
  eye = jnp.eye(size, dtype=lower.dtype)
  inverse = jnp.broadcast_to(eye, lower.shape)
  block = 1
  while block < size:
    row, column = index[:, None] // block, index[None, :] // block
    joins = (row // 2 == column // 2) & (row == column + 1)
    middle = jnp.where(joins, lower, 0)
    if block == 1:
      inverse = inverse - middle
    else:
      inverse = inverse - matmul(
          inverse, matmul(middle, inverse, precision), precision
      )
    block *= 2
  if precision == 'float32':
    return inverse
  high = _leading_half(lower)
  # The shortened T is the one improved, so that only L needs a second part.
  inverse = _leading_half(inverse)
  parts = jnp.concatenate([high, lower - high], axis=-2)
  parts = matmul(parts, inverse, precision)
  residual = eye - inverse - (parts[..., :size, :] + parts[..., size:, :])
  return inverse + matmul(inverse, residual, precision)


def _leading_half(x: Array) -> Array:
  """float32 x with its first 16 bits, which bfloat16 holds exactly.

  As a mask, because compilers may leave out a cast there and back.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def prefix(x: Array) -> Array:
  """Cumulated sums over the last axis, as a product with a triangle of ones."""
  index = jnp.arange(x.shape[-1])
  upto = (index[:, None] <= index[None, :]).astype(x.dtype)
  return jnp.matmul(x, upto, precision='highest')


def _later(x: Array) -> Array:
  """One step later along the last axis, 0 ahead."""
  return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


@jax.custom_jvp
def column(x: Array) -> Array:
  """[..., C] -> [..., C, 1].

  On a TPU a vector lies along lanes, and a gradient that comes back as a column
  has to be turned. The derivative is written so that it can be: as row sums of
  a diagonal matrix, whose own derivative is a sum over rows.
  """
  return x[..., None]


@column.defjvp
def _column_jvp(primals, tangents):
  return column(*primals), _turned(*tangents)


def row(x: Array) -> Array:
  """[..., C, 1] -> [..., C], the inverse of `column`, for the same reason."""
  own = jnp.eye(x.shape[-2], dtype=bool)
  return jnp.sum(jnp.where(own, x, 0), axis=-2)


def _turned(x: Array) -> Array:
  """`column`, as row sums of a diagonal matrix."""
  own = jnp.eye(x.shape[-1], dtype=bool)
  return jnp.sum(jnp.where(own, x[..., None, :], 0), axis=-1, keepdims=True)


def _before(size: int) -> Array:
  """[C, C] bool: s < t, rows t, columns s."""
  index = jnp.arange(size)
  return index[:, None] > index[None, :]


def between_fast(x: Array) -> Array:
  """`between` as the difference of two cumulated sums: to 1e-7 of the sums."""
  total = prefix(x)
  return column(_later(total)) - total[..., None, :]


@jax.custom_jvp
def between(x: Array) -> Array:
  """Sums of x [..., C] over the tokens between s and t, [..., C, C] (s < t).

  As a difference of two cumulated sums they would lose the digits that the sums
  share, so what rounding has taken from the sums is cumulated too and put back.
  The derivative sums its own terms, by a product with a triangle.
  """
  total = prefix(x)
  lost = prefix(x - (total - _later(total)))
  return (column(_later(total)) - total[..., None, :]) + (
      column(_later(lost)) - lost[..., None, :]
  )


@between.defjvp
def _between_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  before = _before(x.shape[-1])
  terms = jnp.where(before, _turned(dx), 0)
  ones = jnp.broadcast_to(before.astype(x.dtype), terms.shape)
  return between(x), jnp.matmul(ones, terms, precision='highest')


def decay(log_alpha: Array, precision: str = 'float32') -> Decay:
  """`Decay` of log retentions; shared by states that decay alike.

  Args:
    log_alpha: [..., C], <= 0 and finite.
    precision: as in `chunk_step`.
  """
  before = _before(log_alpha.shape[-1])
  sums = between if precision == 'float32' else between_fast
  # Masked before exp: the others would be exp of a positive number.
  keep = jnp.exp(jnp.where(before, sums(log_alpha), 0))
  return Decay(
      column(jnp.exp(_later(prefix(log_alpha)))),
      jnp.where(before, keep, 0),
      column(jnp.exp(log_alpha)),
  )


def after(kept: Decay) -> tuple[Array, Array]:
  """What is left just after each token: `Decay.enter` and `Decay.keep` of it.

  [..., C, 1], and [..., C, C] with 1 where s = t.
  """
  own = jnp.eye(kept.keep.shape[-1], dtype=kept.keep.dtype)
  return kept.alpha * kept.enter, kept.alpha * kept.keep + own


def leave(kept: Decay) -> tuple[Array, Array]:
  """The last row of `after`: [..., 1, 1] and [..., 1, C]."""
  size = kept.keep.shape[-1]
  own = (jnp.arange(size) == size - 1).astype(kept.keep.dtype)
  enter, keep, alpha = (x[..., -1:, :] for x in kept)
  return enter * alpha, keep * alpha + own


def flow(kept: Decay, log_mu: Array, present: Array, precision: str) -> Flow:
  """`Flow` of momentum with log gates [..., C] into a state.

  Args:
    kept: decay of the state.
    log_mu: <= 0.
    present: [..., C], 1; or 0: M_t takes no S_t (and log_mu must be 0).
    precision: as in `chunk_step`.

  Returns:
    With A = kept.keep and B that of the momentum after each token, reach = A B
    and inflow = A e^m, both summed over tokens that are present.
  """
  own = decay(log_mu, precision)
  enter, keep = after(own)
  taken = kept.keep * present[..., None, :]
  reach = matmul(taken, keep, precision)
  inflow = jnp.sum(taken * transpose(enter), axis=-1, keepdims=True)
  # 1 - mu: as -expm1(log mu) it keeps its digits near mu = 1, and no kernel
  # compiler knows expm1.
  share = column(jnp.tanh(-0.5 * log_mu) * (1 + jnp.exp(log_mu)))
  return Flow(share, own, column(present), reach, inflow)


def arrived(flowing: Flow, alpha: Array, last: bool) -> tuple[Array, Array]:
  """`Flow.inflow` and `Flow.reach` just after each token, or the last one.

  A token adds what is left of each write in the momentum of that moment.
  """
  rows = slice(-1, None) if last else slice(None)
  enter, keep = (leave if last else after)(flowing.decay)
  alpha, present, reach, inflow = (
      x[..., rows, :]
      for x in (alpha, flowing.present, flowing.reach, flowing.inflow)
  )
  return alpha * inflow + present * enter, alpha * reach + present * keep


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
    inverse: Array | None = None,
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
    inverse: `system_inverse`, where it is known (one group, no momentum).

  Returns:
    Outputs [..., C, V of the first group] or None, the new state, the new
    momentum state or None.
  """
  groups = groups or ((u.shape[-1], 1.0),)
  kept = log_alpha
  if not isinstance(kept, Decay):
    kept = decay(log_alpha, precision)
  eta = column(eta)
  if momentum is not None:
    return _momentum_chunk_step(
        state, q, k, u, eta, kept, *momentum, read=read, erase=erase,
        groups=groups, precision=precision,
    )
  # One product serves keys and queries: rows of both against the same operand.
  reads = read != 'none'
  rows = jnp.concatenate([k, q], axis=-2) if reads else k
  if erase or reads:
    retrieved, q_retrieved = _split(matmul(rows, state, precision), k)
    gram, scores = _split(matmul(rows, transpose(k), precision), k)
  x = u - kept.enter * retrieved if erase else u
  e = _shared(eta * x, groups)
  if erase:
    lower = eta * (kept.keep * gram)
    e = _solve(lower, e, groups, precision, inverse)
  o = None
  width = groups[0][0]
  if read == 'chunk':
    o = q_retrieved[..., :width]
  elif reads:
    enter, keep = kept[:2] if read == 'pre' else after(kept)
    o = enter * q_retrieved[..., :width]
    o = o + matmul(keep * scores, e[..., :width], precision)
  enter, keep = leave(kept)
  new = enter * state + matmul(_weighted(k, keep), e, precision)
  return o, new, None


def _split(x: Array, k: Array) -> tuple[Array, Array]:
  """Rows of the keys, rows of the queries."""
  return x[..., : k.shape[-2], :], x[..., k.shape[-2] :, :]


def _weighted(k: Array, weight: Array) -> Array:
  """K^T with each token's column times its weight [..., 1, C]."""
  return transpose(column(weight[..., 0, :]) * k)


def _shared(x: Array, groups: Groups) -> Array:
  """x [..., C, V] with each group of columns times its share."""
  if all(share == 1.0 for _, share in groups):
    return x
  shares = [jnp.full((1, n), share, x.dtype) for n, share in groups]
  return x * jnp.concatenate(shares, axis=-1)


def system_inverse(
    k: Array, eta: Array, log_alpha: Array, precision: str
) -> Array:
  """(I + L)^{-1} of a chunk, [..., C, C]; it does not depend on the state."""
  gram = matmul(k, transpose(k), precision)
  lower = column(eta) * (decay(log_alpha, precision).keep * gram)
  return inverse_unit_lower(lower, precision)


def _solve(
    lower: Array,
    rhs: Array,
    groups: Groups,
    precision: str,
    inverse: Array | None = None,
) -> Array:
  """(I + share * lower)^{-1} rhs, each group of columns with its share."""
  if inverse is not None:
    return unit_lower_solve(lower, inverse, rhs, precision)
  scaled = {share: share * lower for _, share in groups}
  inverses = {
      share: inverse_unit_lower(jax.lax.stop_gradient(x), precision)
      for share, x in scaled.items()
  }
  parts, start = [], 0
  for width, share in groups:
    part = rhs[..., start : start + width]
    parts.append(
        unit_lower_solve(scaled[share], inverses[share], part, precision)
    )
    start += width
  return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def unit_lower_solve(
    lower: Array, inverse: Array, rhs: Array, precision: str
) -> Array:
  """x with (I + lower) x = rhs, given the inverse.

  Differentiated as a linear system, (I + lower) dx = d rhs - (d lower) x: the
  backward pass is one product with the transposed inverse, d lower = -(d rhs)
  x^T, instead of a walk back through the products that made the inverse.
  """
  solve = _solve_bf16 if precision == 'bf16' else _solve_exact
  return solve(lower, inverse, rhs)


@jax.custom_jvp
def _solve_exact(lower: Array, inverse: Array, rhs: Array) -> Array:
  del lower
  return matmul(inverse, rhs, 'float32')


@_solve_exact.defjvp
def _solve_exact_jvp(primals, tangents):
  lower, inverse, rhs = primals
  d_lower, _, d_rhs = tangents
  x = _solve_exact(lower, inverse, rhs)
  residual = d_rhs - matmul(d_lower, x, 'float32')
  return x, _solve_exact(lower, inverse, residual)


@jax.custom_vjp
def _solve_bf16(lower: Array, inverse: Array, rhs: Array) -> Array:
  del lower
  return matmul(inverse, rhs, 'bf16')


def _solve_bf16_fwd(lower, inverse, rhs):
  x = _solve_bf16(lower, inverse, rhs)
  return x, (inverse, x)


def _solve_bf16_bwd(residuals, dx):
  inverse, x = residuals
  d_rhs = matmul(transpose(inverse), dx, 'bf16')
  return -matmul(d_rhs, transpose(x), 'bf16'), None, d_rhs


_solve_bf16.defvjp(_solve_bf16_fwd, _solve_bf16_bwd)


def _momentum_chunk_step(
    state, q, k, u, eta, kept, velocity, flowing, *, read, erase, groups,
    precision,
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
  w = _shared(eta * flowing.share * u, groups)
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
    retrieved = kept.enter * k_state + flowing.inflow * k_flow
    retrieved += matmul(flowing.reach * gram, w, precision)
    rhs = _shared(eta * retrieved, groups)
    d = _solve(eta * kept.keep * gram, rhs, groups, precision)
  o = None
  width = groups[0][0]
  if read == 'chunk':
    o = q_state[..., :width]
  elif reads:
    if read == 'pre':
      (enter, keep), inflow, reach = kept[:2], flowing.inflow, flowing.reach
    else:
      enter, keep = after(kept)
      inflow, reach = arrived(flowing, kept.alpha, last=False)
    o = enter * q_state[..., :width] + inflow * q_flow[..., :width]
    o += matmul(reach * scores, w[..., :width], precision)
    if erase:
      o -= matmul(keep * scores, d[..., :width], precision)
  enter, keep = leave(kept)
  inflow, reach = arrived(flowing, kept.alpha, last=True)
  enter_flow, keep_flow = leave(flowing.decay)
  # What the writes add to both states: the values are the same, one product.
  weighted = [_weighted(k, reach), _weighted(k, keep_flow)]
  gains = matmul(jnp.concatenate(weighted, axis=-2), w, precision)
  gain, gain_flow = jnp.split(gains, 2, axis=-2)
  new = enter * state + inflow * velocity + gain
  if erase:
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
