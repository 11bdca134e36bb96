"""The chunk form for packed rows: the state restarts inside a tile.

Tokens of the segment that enters a tile read the state that entered with it; a
segment that starts inside the tile reads the reset state. Both are masks on the
formulas of `chunked`, so that a packed row gives what its documents give alone.
(Masks and sums, not gathers: kernels call `segment_step` too.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.chunked import tiles, untile
from hope_jax.kernels.dgd.decays import after, decay, leave
from hope_jax.kernels.dgd.products import (
  Precision,
  column,
  inverse_unit_lower,
  matmul,
  transpose,
  unit_lower_solve,
)
from hope_jax.kernels.dgd.reference import Packed, Read
from hope_jax.types import Array


class Positions(NamedTuple):
  """Where the tokens of a tile belong, counted from the tile's start."""

  first: Array  # [..., C] int: where the token's segment starts; -1: before
  boundary: Array  # [..., C] int: where the token's chunk starts; -1: before


def locate(
    segment_ids: Array, tile: int, ahead: Array | None = None
) -> Positions:
  """Positions of segment and chunk starts of each token, from [B, T] ids.

  A chunk is `tile` tokens counted from the segment's start. Returns global
  positions, [B, T]; the segment of the first token starts at position 0, or
  `ahead` [B] tokens before it.
  """
  t = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  starts = jnp.pad(changed, ((0, 0), (1, 0)))
  first = jax.lax.cummax(jnp.where(starts, t, 0), axis=1)
  if ahead is not None:
    first = jnp.where(first == 0, -ahead[:, None], first)
  return Positions(first, first + (t - first) // tile * tile)


def tile_positions(
    segment_ids: Array, tile: int, ahead: Array | None = None
) -> Positions:
  """`locate`, counted from the start of each token's tile; -1: before it.

  [B, T padded to tiles]. Padding goes on with the last segment, and the first
  segment was there before the first tile: it reads the state that enters.
  """
  missing = -segment_ids.shape[1] % tile
  ids = jnp.pad(segment_ids, ((0, 0), (0, missing)), mode='edge')
  where = locate(ids, tile, ahead)
  where = where._replace(first=jnp.where(where.first <= 0, -1, where.first))
  start = jnp.arange(ids.shape[1], dtype=jnp.int32) // tile * tile
  return Positions(*(jnp.maximum(x - start, -1) for x in where))


def segment_step(
    states: tuple[Array, Array],
    reset: Array | None,
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    where: Positions,
    *,
    read: Read,
    erase: bool,
    precision: Precision,
) -> tuple[Array, tuple[Array, Array]]:
  """`chunked.chunk_step` for a tile in which segments may start.

  Args:
    states: the state that enters, and the state at the last chunk start of the
      segment that enters (for the 'chunk' read); both [..., K, V].
    reset: the state a segment starts from, [..., K, V]; None: zero.
    q: queries, [..., C, K]. Then k, u, eta, log_alpha as in `chunk_step`.
    k: keys.
    u: write values.
    eta: write strengths.
    log_alpha: log retentions.
    where: positions in the tile, [..., C].
    read: 'pre', 'post' or 'chunk'.
    erase: as in `chunk_step`; then precision.
    precision: of the products.

  Returns:
    Outputs [..., C, V] and the two states at the end of the tile.
  """
  state, chunk_state = states
  size = k.shape[-2]
  at = jnp.arange(size, dtype=where.first.dtype)
  first = where.first[..., :, None]
  carried = first < 0
  same = first == where.first[..., None, :]
  kept = decay(log_alpha, precision)
  # What is left of the state a token's segment began the tile with: decay since
  # the token ahead of the segment, or from the tile's start.
  ahead = at == first - 1

  def since(enter, keep):
    inside = jnp.sum(jnp.where(ahead, keep, 0), axis=-1, keepdims=True)
    return jnp.where(first > 0, inside, enter), jnp.where(same, keep, 0)

  def retrieve(x):
    """x read from the state its segment began the tile with."""
    fresh = 0 if reset is None else matmul(x, reset, precision)
    return jnp.where(carried, matmul(x, state, precision), fresh)

  enter, keep = since(*kept[:2])
  eta = column(eta)
  e = eta * u
  if erase:
    lower = eta * keep * matmul(k, transpose(k), precision)
    inverse = inverse_unit_lower(jax.lax.stop_gradient(lower), precision)
    rhs = eta * (u - enter * retrieve(k))
    e = unit_lower_solve(lower, inverse, rhs, precision)

  boundary = where.boundary[..., :, None]
  if read == 'chunk':  # a 'pre' read of the chunk's first token: pick its row
    opens = (at == jnp.maximum(boundary, 0)).astype(keep.dtype)
    enter = jnp.sum(opens * transpose(enter), axis=-1, keepdims=True)
    keep = matmul(opens, keep, 'float32')
  elif read == 'post':
    enter, keep = since(*after(kept))
  scores = matmul(q, transpose(k), precision)
  o = enter * retrieve(q) + matmul(keep * scores, e, precision)
  began = jnp.where(carried[..., -1:, :], state, 0 if reset is None else reset)

  def leaving(enter, keep):
    """The state the last segment reaches: what is left, and what it wrote."""
    weighted = transpose(transpose(keep) * k)
    return enter * began + matmul(weighted, e, precision)

  if read == 'chunk':
    o = jnp.where(boundary < 0, matmul(q, chunk_state, precision), o)
    # A whole tile holds a chunk start of any segment that spans it.
    new_chunk = leaving(enter[..., -1:, :], keep[..., -1:, :])
    last = boundary[..., -1:, :]
    chunk_state = jnp.where(last < 0, chunk_state, new_chunk)
  last_enter, last_keep = leave(kept)
  last_first = first[..., -1:, :]
  inside = jnp.sum(
      jnp.where(at == last_first - 1, last_keep, 0), axis=-1, keepdims=True
  )
  last_enter = jnp.where(last_first > 0, inside, last_enter)
  last_keep = jnp.where(same[..., -1:, :], last_keep, 0)
  return o, (leaving(last_enter, last_keep), chunk_state)


def segment_scan(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    packed: Packed,
    *,
    read: Read,
    tile: int,
    erase: bool,
    precision: Precision,
) -> tuple[Array, tuple[Array, Array]]:
  """`chunked.chunk_scan` with segments.

  Returns outputs, and two states, the final one and the one at the last chunk
  start (of a 'chunk' read).
  """
  where = tile_positions(packed.segment_ids, tile, packed.ahead)

  def body(states, xs):
    """carry: state and chunk-start state; xs: a tile of the inputs."""
    *inputs, where = xs
    o, states = segment_step(
        states, packed.reset, *inputs, where=where, read=read, erase=erase,
        precision=precision,
    )
    return states, o

  xs = tuple(tiles(x, tile) for x in (q, k, u, eta, log_alpha))
  where = Positions(*(tiles(x[:, :, None], tile) for x in where))
  states, o = jax.lax.scan(
      jax.checkpoint(body), (state, state), (*xs, where)
  )
  return untile(o, k.shape[1]), states
