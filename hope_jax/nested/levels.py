"""Update frequency and chunking: the one scan that runs a level.

A level whose frequency is one update in C tokens reads a copy of its memory
that stands still for C tokens. `token_grid` says where each token sits on that
grid, `scan_tiles` walks it. The grid restarts at each document, so that a
document packed anywhere in a row is chunked as it would be alone, and it is
carried from call to call as a phase, so that a text may be cut anywhere.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import Array, PyTree


class Grid(NamedTuple):
  """Tokens of a call laid out in N tiles of C, for each row.

  `token` and `index` are None where the tiles hold the tokens in order.
  """

  token: Array | None  # [B, N * C], which token lies there; T: none
  index: Array | None  # [B, T], where in the N * C each token lies
  valid: Array  # [B, N * C] bool: a token lies there
  opens: Array  # [B, N] position in its document of a tile that opens; else -1
  reset: Array  # [B, N] bool: a document starts with the tile
  phase: Array  # [B] tokens into the longest chunk after the call
  overflow: Array  # [B] bool: documents do not lie on the grid
  tile: int  # C


# Why a row is answered with NaN, by the name of the metric that counts such
# rows. Nothing else in this package writes NaN. What makes batches does not
# make such rows, and a batch from elsewhere is refused where it comes in
# (`models.packing.require_room`); inside a compiled step there is only this.
REASONS = {
    'crowded_rows': (
        'more documents than the chunk grid has room for; raise data.align to'
        ' the chunk, or lower the chunk'
    ),
    'unaligned_rows': (
        "documents off the chunk grid, which titans.grid='aligned' does not"
        ' take; make data.align a multiple of the shorter chunk, or set'
        " titans.grid='document'"
    ),
    'off_chunk_rows': (
        'documents that start inside a chunk, which'
        " continuum.regime='in_context' does not take; make data.align a"
        ' multiple of the fastest of continuum.periods'
    ),
}


def reason_of(grid: Grid, starts: Array | None) -> str:
  """Returns what `overflow` rows of a grid are called; '': there are none."""
  if starts is None:
    return ''
  return 'unaligned_rows' if grid.token is None else 'crowded_rows'


def poison(
    x: Array, rows: Array, reason: str
) -> tuple[Array, dict[str, Array]]:
  """Answers with NaN where an answer would be a mixture of documents.

  Args:
    x: outputs, [B, ...].
    rows: [B] bool, which rows.
    reason: a name of `REASONS`; '' where there are no such rows.

  Returns:
    The outputs, and the number of such rows under the reason's name.
  """
  if not reason:
    return x, {}
  assert reason in REASONS
  rows_of_x = rows.reshape(-1, *(1,) * (x.ndim - 1))
  count = jax.lax.stop_gradient(jnp.sum(rows).astype(jnp.float32))
  return jnp.where(rows_of_x, jnp.nan, x), {reason: count}


def reason_for_nan(metrics: Mapping[str, Any]) -> str:
  """Returns why a step's loss is NaN, of its metrics; '' if not for this."""
  for name, reason in REASONS.items():
    if count := int(metrics.get(f'{name}/max', 0)):
      return f'{count} rows have {reason}'
  return ''


def ahead(flags: Array) -> Array:
  """How many of the flags [B, T] before each one are set, int32."""
  flags = flags.astype(jnp.int32)
  return jnp.cumsum(flags, axis=1, dtype=jnp.int32) - flags


def room(length: int, tile: int) -> int:
  """Returns how many tiles the grid of packed documents has for T tokens.

  Twice what one document needs, and 8: a document of n tokens takes
  ceil(n / C), so that more of them fit than the row has tiles of C. What is
  made into rows by `data.packing` never needs more.
  """
  return min(length, 2 * (-(-length // tile)) + 8)


def token_grid(
    batch: int,
    length: int,
    *,
    tile: int,
    period: int,
    phase: Array | None = None,
    starts: Array | None = None,
    present: Array | None = None,
    aligned: bool = False,
) -> Grid:
  """Lays the tokens of a call out on the chunk grid of their documents.

  Args:
    batch: rows B.
    length: tokens T of the call.
    tile: tokens C of a tile: the shortest chunk of any level.
    period: the longest chunk, a multiple of `tile`.
    phase: [B] tokens already in the open chunk, 0 <= phase < period; None: a
      fresh start, known to be 0 when compiling.
    starts: [B, T] bool, true at the first token of a document; None: none.
    present: [B, T] bool, false at padding, which no level sees; None: all.
    aligned: the caller's word that documents start at multiples of `tile`
      (padding before them included). Cheaper; a start elsewhere overflows.

  Returns:
    The grid. In `overflow` rows (documents shorter than a tile on average, or
    not aligned) it is not valid; callers `poison` these.
  """
  if phase is None and (aligned or starts is present is None):
    return _static_grid(batch, length, tile, period, starts, present)
  if starts is None:
    starts = jnp.zeros((batch, length), bool)
    tiles = -(-(length + tile - 1) // tile)
  else:
    tiles = room(length, tile)
  if phase is None:
    phase = jnp.zeros((batch,), jnp.int32)
  if length == 1:  # one step of decoding: a tile of one token
    tile, tiles = 1, 1
  if present is None:
    present = jnp.ones((batch, length), bool)
  starts = starts & present
  count = ahead(present)
  base = jax.lax.cummax(jnp.where(starts, count, -1), axis=1)
  position = jnp.where(base >= 0, count - base, count + phase[:, None])
  opens = present & (starts | (position % tile == 0))
  # The first token belongs to tile 0 whether it opens it or goes on with it.
  first = jnp.take_along_axis(
      opens, jnp.argmax(present, axis=1)[:, None], axis=1
  )
  of_tile = jnp.cumsum(opens, axis=1, dtype=jnp.int32) - first.astype(jnp.int32)
  index = jnp.where(present, of_tile * tile + position % tile, tiles * tile)
  rows = jnp.arange(batch)[:, None]

  def scatter(size, at, values, empty):
    full = jnp.full((batch, size), empty, values.dtype)
    return full.at[rows, at].set(values, mode='drop')

  t = jnp.arange(length, dtype=jnp.int32)
  t = jnp.broadcast_to(t, (batch, length))
  token = scatter(tiles * tile, index, t, length)
  opened = jnp.where(opens, of_tile, tiles)
  last = jnp.max(jnp.where(present, t, -1), axis=1, keepdims=True)
  end = jnp.take_along_axis(position, jnp.maximum(last, 0), axis=1)[:, 0] + 1
  return Grid(
      token=token,
      index=index,
      valid=token < length,
      opens=scatter(tiles, opened, position, -1),
      reset=scatter(tiles, opened, starts, False),
      phase=jnp.where(last[:, 0] >= 0, end % period, phase).astype(jnp.int32),
      overflow=jnp.any(present & (of_tile >= tiles), axis=1),
      tile=tile,
  )


def _static_grid(batch, length, tile, period, starts, present) -> Grid:
  """The grid when tiles hold the tokens in order, the end padded."""
  n = -(-length // tile)
  shape = (batch, n * tile)

  def pad(x, value):
    missing = ((0, 0), (0, n * tile - length))
    return jnp.pad(x, missing, constant_values=value)

  present = jnp.ones((batch, length), bool) if present is None else present
  position = jnp.arange(n, dtype=jnp.int32) * tile
  position = jnp.broadcast_to(position, (batch, n))
  reset = jnp.zeros((batch, n), bool)
  overflow = jnp.zeros((batch,), bool)
  if starts is not None:
    starts = pad(starts & present, False)
    reset = starts[:, ::tile]
    overflow = jnp.sum(starts, axis=1) != jnp.sum(reset, axis=1)
    begun = jax.lax.cummax(jnp.where(reset, position, 0), axis=1)
    position = position - begun
  valid = pad(present, False)
  # A tile of nothing but padding leaves the memory where it was.
  seen = jnp.sum(valid.reshape(batch, n, tile), axis=2, dtype=jnp.int32)
  filled = jnp.where(seen > 0, position + seen, 0)
  last = jnp.max(jnp.where(seen > 0, jnp.arange(n), 0), axis=1)
  end = jnp.take_along_axis(filled, last[:, None], axis=1)[:, 0]
  return Grid(
      token=None,
      index=None,
      valid=jnp.broadcast_to(valid, shape),
      opens=jnp.where(seen > 0, position, -1),
      reset=reset,
      phase=(end % period).astype(jnp.int32),
      overflow=overflow,
      tile=tile,
  )


def to_tiles(x: Array, grid: Grid) -> Array:
  """[B, T, ...] -> [N, B, C, ...]; zeros where no token lies."""
  size = grid.valid.shape[1]
  if grid.token is None:
    missing = size - x.shape[1]
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
  else:
    token = grid.token.reshape(*grid.token.shape, *(1,) * (x.ndim - 2))
    x = jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.take_along_axis(x, token, axis=1)
  return split(x, grid.tile)


def split(x: Array, tile: int) -> Array:
  """[B, N * C, ...] -> [N, B, C, ...]."""
  x = x.reshape(x.shape[0], -1, tile, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def from_tiles(x: Array, grid: Grid, length: int) -> Array:
  """[N, B, C, ...] -> [B, T, ...], the inverse of `to_tiles`; padding is 0."""
  x = jnp.moveaxis(x, 0, 1)
  x = x.reshape(x.shape[0], -1, *x.shape[3:])
  if grid.index is None:
    return x[:, :length]
  x = jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2))
  index = jnp.minimum(grid.index, x.shape[1] - 1)
  index = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def scan_tiles(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    inputs: PyTree,
    grid: Grid,
) -> tuple[PyTree, PyTree]:
  """Runs `body` over the tiles of a grid: the one scan of a level.

  The scan is one of about sqrt(N) scans of as many tiles. The backward pass
  keeps the carries between the scans and computes the rest anew: memory grows
  with sqrt(N), and each tile runs forward three times in all.

  Args:
    body: (carry, a tile of each input [B, C, ...]) -> (carry, outputs).
    carry: what the level hands from tile to tile.
    inputs: pytree of [N, B, C, ...], from `to_tiles` and `split`.
    grid: the layout; tiles that are empty in every row are skipped.

  Returns:
    The last carry, and the outputs stacked over tiles, [N, ...].
  """
  filled = jnp.any(split(grid.valid, grid.tile), axis=(1, 2))

  def step(carry, xs):
    """carry: the body's; xs: one tile of the inputs, and if it is filled."""
    x, filled = xs
    if grid.token is None:
      return body(carry, x)
    shapes = jax.eval_shape(body, carry, x)[1]

    def empty(carry, x):
      del x
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
      return carry, zeros

    return jax.lax.cond(filled, body, empty, carry, x)

  count = grid.opens.shape[1]
  root = math.isqrt(count - 1) + 1
  inner = min(n for n in range(root, count + 1) if count % n == 0)
  xs = jax.tree.map(
      lambda x: x.reshape(count // inner, inner, *x.shape[1:]),
      (inputs, filled),
  )
  carry, ys = jax.lax.scan(
      # carry: the body's; xs: (inputs, filled) of the tiles of one inner scan.
      jax.checkpoint(
          lambda carry, xs: jax.lax.scan(jax.checkpoint(step), carry, xs)
      ),
      carry,
      xs,
  )
  return carry, jax.tree.map(lambda y: y.reshape(count, *y.shape[2:]), ys)


def select(flag: Array, new: Any, old: Any) -> Any:
  """Where flag [B], the leaves of `new`, else of `old`; leaves lead with B."""

  def leaf(a, b):
    return jnp.where(flag.reshape(-1, *(1,) * (b.ndim - 1)), a, b)

  return jax.tree.map(leaf, new, old)
