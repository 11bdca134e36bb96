"""The DGD recurrence one token at a time: the meaning that all else must match.

State is the transpose of the paper's M: S = M^T, [K, V]. For token t, with the
state M that its segment has reached (NL Eq. 57, gated as in Eq. 88):

    e_t = eta_t (u_t - M_{t-1} k_t)
    M_t = alpha_t M_{t-1} + e_t k_t^T
        = M_{t-1} (alpha_t I - eta_t k_t k_t^T) + eta_t u_t k_t^T

and e_t = eta_t u_t where nothing is erased.

Reads: 'pre' M_{t-1} q_t, 'post' M_t q_t, 'chunk' M_c q_t, where c is the last
multiple of `tile` (counted from the segment's start) not after t.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import Array

Read = Literal['pre', 'post', 'chunk']


class Packed(NamedTuple):
  """The segments of a row, as an implementation is given them."""

  segment_ids: Array  # [B, T]; a segment starts where the id changes
  reset: Array | None  # [B, H, K, V], what a segment starts from; None: zero
  # [B], tokens of the first segment that came before; None: none.
  ahead: Array | None = None


def recurrence(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    *,
    read: Read,
    tile: int,
    erase: bool = True,
    packed: Packed | None = None,
) -> tuple[Array, tuple[Array, Array]]:
  """Runs the recurrence token by token.

  Args:
    q: queries, [B, T, H, K].
    k: keys, [B, T, H, K].
    u: write values, [B, T, H, V].
    eta: write strengths, [B, T, H].
    log_alpha: log of the retention, [B, T, H].
    state: state before the first token, [B, H, K, V].
    read: 'pre', 'post' or 'chunk'.
    tile: chunk of the 'chunk' read, in tokens.
    erase: whether the delta decay acts.
    packed: the segments of packed rows, or None.

  Returns:
    Outputs [B, T, H, V], and two states [B, H, K, V], the final one and the one
    at the last chunk start; in the state's dtype.
  """
  dtype = state.dtype
  batch, length = k.shape[:2]
  starts = jnp.zeros((batch, length), bool)
  reset, position = 0, jnp.zeros((batch,), jnp.int32)
  if packed is not None:
    changed = packed.segment_ids[:, 1:] != packed.segment_ids[:, :-1]
    starts = starts.at[:, 1:].set(changed)
    reset = 0 if packed.reset is None else packed.reset
    position = position if packed.ahead is None else packed.ahead

  def token(carry, xs):
    """carry: (S, S_c, tokens into the segment); xs: one token of each input."""
    s, s_chunk, position = carry
    q, k, u, eta, log_alpha, start = xs
    fresh = start[:, None, None, None]
    s = jnp.where(fresh, reset, s)
    position = jnp.where(start, 0, position)
    boundary = (position % tile == 0)[:, None, None, None]
    s_chunk = jnp.where(boundary, s, s_chunk)
    error = u
    if erase:
      error = u - jnp.einsum('bhk,bhkv->bhv', k, s, precision='highest')
    e = eta[..., None] * error
    new = jnp.exp(log_alpha)[..., None, None] * s + jnp.einsum(
        'bhk,bhv->bhkv', k, e
    )
    source = {'pre': s, 'post': new, 'chunk': s_chunk}[read]
    o = jnp.einsum('bhk,bhkv->bhv', q, source, precision='highest')
    return (new, s_chunk, position + 1), o

  xs = [
      jnp.moveaxis(x, 1, 0)
      for x in (*(x.astype(dtype) for x in (q, k, u, eta, log_alpha)), starts)
  ]
  (last, at_chunk, _), o = jax.lax.scan(
      token, (state, state, position), tuple(xs)
  )
  return jnp.moveaxis(o, 0, 1), (last, at_chunk)
