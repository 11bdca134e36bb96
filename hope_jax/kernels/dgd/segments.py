"""The chunk form for packed documents: the state restarts inside a tile.

Tokens of the segment that enters a tile read the state that entered with it; a
segment that starts inside the tile reads the reset state. Both are masks on the
formulas of `chunked`, so that a packed row gives what its documents give alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.chunked import (
    Read,
    decays,
    inverse_unit_lower,
    matmul,
    shift,
    tiles,
    transpose,
    unit_lower_solve,
    untile,
)
from hope_jax.types import Array


class Segments(NamedTuple):
  """Where the tokens of a tile belong, counted from the tile's start."""

  first: Array  # [..., C] int: where the token's segment starts; < 0: before
  boundary: Array  # [..., C] int: where the token's chunk starts; < 0: before


def locate(segment_ids: Array, tile: int) -> Segments:
  """Positions of segment and chunk starts of each token, from [B, T] ids.

  A chunk is `tile` tokens counted from the segment's start. Returns global
  positions, [B, T]; the segment of the first token starts at position 0.
  """
  t = jnp.arange(segment_ids.shape[1])
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  starts = jnp.pad(changed, ((0, 0), (1, 0)))
  first = jax.lax.cummax(jnp.where(starts, t, 0), axis=1)
  return Segments(first, first + (t - first) // tile * tile)


def segment_step(
    states: tuple[Array, Array],
    reset: Array,
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    where: Segments,
    *,
    read: Read,
    precision: str,
) -> tuple[Array, tuple[Array, Array]]:
  """`chunked.chunk_step` for a tile in which segments may start.

  Args:
    states: the state that enters, and the state at the last chunk start of the
      segment that enters (for the 'chunk' read); both [..., K, V].
    reset: the state a segment starts from, [..., K, V].
    q: queries, [..., C, K]. Then k, u, eta, log_alpha as in `chunk_step`.
    k: keys.
    u: write values.
    eta: write strengths.
    log_alpha: log retentions.
    where: positions in the tile, [..., C].
    read: 'pre', 'post' or 'chunk'.
    precision: as in `chunk_step`.

  Returns:
    Outputs [..., C, V] and the two states at the end of the tile.
  """
  state, chunk_state = states
  carried = where.first < 0
  same = where.first[..., :, None] == where.first[..., None, :]
  keep = decays(log_alpha)
  keep_pre = shift(keep)
  # What is left of the state a token's segment began the tile with: decay over
  # (first - 1, t], or from the tile's start.
  ahead = jnp.maximum(where.first - 1, 0)[..., None]
  inside = where.first > 0

  def entering(kept, total):
    since = jnp.take_along_axis(kept, ahead, axis=-1)[..., 0]
    return jnp.where(inside, since, jnp.exp(total))

  c = jnp.cumsum(log_alpha, axis=-1)
  enter_pre = entering(keep_pre, shift(c[..., None])[..., 0])
  enter_post = entering(keep, c)
  keep, keep_pre = jnp.where(same, keep, 0), jnp.where(same, keep_pre, 0)

  def retrieve(x):
    """x read from the state its segment began the tile with."""
    return jnp.where(
        carried[..., None],
        matmul(x, state, precision),
        matmul(x, reset, precision),
    )

  gram = matmul(k, transpose(k), precision)
  lower = eta[..., None] * keep_pre * gram
  rhs = eta[..., None] * (u - enter_pre[..., None] * retrieve(k))
  inverse = inverse_unit_lower(lower)
  e = unit_lower_solve(lower, inverse, rhs, precision)

  # A 'chunk' read is a 'pre' read of the chunk's first token.
  start = jnp.maximum(where.boundary, 0)
  if read == 'chunk':
    kept = jnp.take_along_axis(keep_pre, start[..., None], axis=-2)
    enter = jnp.take_along_axis(enter_pre, start, axis=-1)
  elif read == 'pre':
    kept, enter = keep_pre, enter_pre
  else:
    kept, enter = keep, enter_post
  scores = matmul(q, transpose(k), precision)
  o = enter[..., None] * retrieve(q) + matmul(kept * scores, e, precision)
  if read == 'chunk':
    earlier = where.boundary < 0
    o = jnp.where(earlier[..., None], matmul(q, chunk_state, precision), o)

  began = jnp.where(carried[..., -1, None, None], state, reset)

  def leave(enter, kept):
    """The state the last segment reaches: what is left, and what it wrote."""
    written = matmul(transpose(kept[..., None] * k), e, precision)
    return enter[..., None, None] * began + written

  new = leave(enter_post[..., -1], keep[..., -1, :])
  # A whole tile holds a chunk start of any segment that spans it.
  at = where.boundary[..., -1, None, None]
  last = start[..., -1:]
  new_chunk = leave(
      jnp.take_along_axis(enter_pre, last, axis=-1)[..., 0],
      jnp.take_along_axis(keep_pre, last[..., None], axis=-2)[..., 0, :],
  )
  new_chunk = jnp.where(at < 0, chunk_state, new_chunk)
  return o, (new, new_chunk)


def segment_scan(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    segment_ids: Array,
    *,
    read: Read,
    tile: int,
    precision: str,
) -> tuple[Array, Array]:
  """`chunked.chunk_scan` with segments; each restarts from `state`."""
  length = k.shape[1]
  padded = -(-length // tile) * tile
  # Padding continues the last segment, with eta = 0 and log alpha = 0.
  ids = jnp.pad(segment_ids, ((0, 0), (0, padded - length)), mode='edge')
  where = locate(ids, tile)
  where = Segments(*(tiles(x[:, :, None], tile) for x in where))
  offsets = jnp.arange(padded // tile) * tile

  def body(states, xs):
    """carry: state and chunk-start state; xs: a tile of the inputs."""
    *inputs, where, offset = xs
    where = Segments(*(x - offset for x in where))
    o, states = segment_step(
        states, state, *inputs, where, read=read, precision=precision
    )
    return states, o

  # The first segment enters the first tile with `state`: it is 'carried'.
  first = where.first.at[0].add(jnp.where(where.first[0] == 0, -1, 0))
  where = where._replace(first=first)
  xs = tuple(tiles(x, tile) for x in (q, k, u, eta, log_alpha))
  (final, _), o = jax.lax.scan(
      jax.checkpoint(body), (state, state), (*xs, where, offsets)
  )
  return untile(o, length), final
