"""How packed documents reach the layers, and what is handed over."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax import core as jax_core
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ConfigError, ModelConfig, architectures
from hope_jax.nested import levels
from hope_jax.types import Array


class Packing(NamedTuple):
  """Document structure of a call; None where there is nothing to say."""

  starts: Array | None  # [B, T] bool: first token of a document
  present: Array | None  # [B, T] bool: false at padding
  position: Array | None  # [B, T] int32: tokens since the document's start

  def flags(self, batch: int, length: int) -> tuple[Array, Array]:
    """`starts` and `present`, [B, T] where there is nothing to say, too."""
    none = jnp.zeros((batch, length), bool)
    return (
        none if self.starts is None else self.starts,
        ~none if self.present is None else self.present,
    )


class Place(NamedTuple):
  """Where a stream stands between two calls."""

  segment: Array  # [B] int32: id of the last document; 0: none yet, or unnamed
  position: Array  # [B] int32: tokens since its start


def locate(
    segment_ids: Array | None, place: Place | None, batch: int, length: int
) -> tuple[Packing, Place]:
  """Finds document starts and positions from segment ids.

  Args:
    segment_ids: [B, T] int; a document starts where the id changes to another
      that is not 0; 0 is padding. None: the row goes on with its document.
    place: where the last call stopped; None: nothing came before.
    batch: B.
    length: T.

  Returns:
    The packing of this call, and where it stops.
  """
  fresh = place is None
  if fresh:
    zero = jnp.zeros((batch,), jnp.int32)
    place = Place(zero, zero)
  t = jnp.arange(length, dtype=jnp.int32)
  if segment_ids is None:
    position = None
    if not fresh:
      position = place.position[:, None] + t
    end = place.position + length
    return Packing(None, None, position), Place(place.segment, end)
  ids = segment_ids.astype(jnp.int32)
  present = ids != 0
  # Padding belongs to the document before it: carry the last id forward.
  index = jnp.where(present, t, -1)
  latest = jax.lax.cummax(index, axis=1)
  held = jnp.where(
      latest >= 0,
      jnp.take_along_axis(ids, jnp.maximum(latest, 0), axis=1),
      place.segment[:, None],
  )
  previous = jnp.concatenate([place.segment[:, None], held[:, :-1]], axis=1)
  starts = present & (ids != previous)
  count = levels.ahead(present)
  total = jnp.sum(present, axis=1, dtype=jnp.int32)
  base = jax.lax.cummax(jnp.where(starts, count, -1), axis=1)
  position = jnp.where(
      base >= 0, count - base, count + place.position[:, None]
  )
  end = jnp.where(
      jnp.any(starts, axis=1),
      total - jnp.max(base, axis=1),
      place.position + total,
  )
  return Packing(starts, present, position), Place(held[:, -1], end)


def require_room(
    config: ModelConfig,
    segment_ids: Any,
    place: Place | None = None,
    fill: Any = 0,
) -> None:
  """Refuses rows that a model would answer with NaN, or read as another text.

  NaN: see `levels.REASONS`. Another text: padding inside a document counts for
  what looks a few tokens back; it may end a call, and of an in-context model no
  call that is gone on from. Inside `jit`, where nothing can be seen of the
  rows, it does nothing.

  Args:
    config: the model.
    segment_ids: [B, T], as of `locate`; None: one document a row.
    place: where the last call stopped; None: nothing came before.
    fill: tokens in the open chunk of an in-context model.

  Raises:
    ConfigError: a row has more documents than the chunk grid has room for, one
      that starts off it, or one with padding inside; it names the row and what
      helps.
  """
  if segment_ids is None or _is_traced(segment_ids, place, fill):
    return
  _require_no_gap(np.asarray(segment_ids), place)
  tile = architectures.chunk_of(config)
  grid, off_grid = architectures.start_of(config)
  if tile == grid == 1:
    return  # Without a grid there is room for a document at every token.
  ids = np.asarray(segment_ids)
  room = levels.room(ids.shape[1], tile)
  for row in range(len(ids)):
    held, position = (0, 0) if place is None else (int(x[row]) for x in place)
    at = np.flatnonzero(ids[row])
    starts = np.flatnonzero(np.diff(ids[row, at], prepend=held))
    who = f'row {row} of a batch, with {len(starts)} documents, has'
    # An aligned layout is used for fresh rows alone.
    off = (at[starts] + int(fill)) % grid
    if off.any() and (place is None or off_grid == 'off_chunk_rows'):
      raise ConfigError(
          f'{who} {levels.REASONS[off_grid]} (one starts at token'
          f' {at[starts][off > 0][0]}, the grid is of {grid})'
      )
    # The row may begin inside a tile of the document before.
    sizes = np.diff(starts, prepend=0, append=len(at))
    sizes[0] += position % tile if sizes[0] else 0
    needed = int(np.sum(-(-sizes // tile)))
    if needed > room:
      raise ConfigError(
          f'{who} {levels.REASONS["crowded_rows"]} (of {tile} tokens: {needed}'
          f' tiles, and there is room for {room})'
      )


def require_dense(
    segment_ids: Any, place: Place, fill: Any, size: int
) -> None:
  """Refuses to go on behind padding that took its place in an open chunk.

  Inside `jit`, where nothing can be seen of it, it does nothing.

  Args:
    segment_ids: [B, T], as of `locate`, of the call; None: all rows go on.
    place: where the last call stopped.
    fill: tokens in the open chunk, padding included.
    size: of a chunk, at multiples of which documents start.

  Raises:
    ConfigError: a row does; it names the row and what helps.
  """
  if _is_traced(segment_ids, place, fill):
    return
  held, position = map(np.asarray, place)
  goes_on = held != 0
  if segment_ids is not None:
    ids = np.asarray(segment_ids)
    goes_on &= ids[np.arange(len(ids)), (ids != 0).argmax(axis=1)] == held
  padded = goes_on & (position % size != int(fill))
  if padded.any():
    raise ConfigError(
        f'row {padded.argmax()} of a batch goes on with a document behind'
        " padding, which counts where continuum.regime='in_context': end calls"
        f' without padding, or at multiples of {size} tokens of a document'
    )


def _is_traced(*values: Any) -> bool:
  return any(isinstance(x, jax_core.Tracer) for x in jax.tree.leaves(values))


def _require_no_gap(ids: np.ndarray, place: Place | None) -> None:
  """Refuses rows in which a document goes on after padding."""
  for row, of_row in enumerate(ids):
    at = np.flatnonzero(of_row)
    held = 0 if place is None else int(place.segment[row])
    goes_on = np.diff(of_row[at], prepend=held) == 0
    gaps = np.diff(at, prepend=-1) > 1
    if np.any(goes_on & gaps):
      raise ConfigError(
          f'row {row} of a batch has padding inside a document, before token'
          f' {at[goes_on & gaps][0]}: padding may only follow one (segment id'
          ' 0, and then another id), or end a call'
      )


def require_room_for(model: Any, batch: Mapping[str, Any]) -> None:
  """Does `require_room` for a batch of fresh rows, given to a model.

  Raises:
    ConfigError: as `require_room`.
  """
  config = getattr(model, 'config', None)
  if isinstance(config, ModelConfig):
    require_room(config, batch.get('segment_ids'))
