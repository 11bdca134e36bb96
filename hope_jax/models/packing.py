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
  """Refuses rows that a model would answer with NaN, see `levels.REASONS`.

  Inside `jit`, where nothing can be seen of them, it does nothing.

  Args:
    config: the model.
    segment_ids: [B, T], as of `locate`; None: one document a row.
    place: where the last call stopped; None: nothing came before.
    fill: tokens in the open chunk of an in-context model.

  Raises:
    ConfigError: a row has more documents than the chunk grid has room for, or
      one that starts off it; it names the row and what helps.
  """
  traced = (
      isinstance(x, jax_core.Tracer)
      for x in jax.tree.leaves((segment_ids, place, fill))
  )
  if segment_ids is None or any(traced):
    return
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


def require_room_for(model: Any, batch: Mapping[str, Any]) -> None:
  """Does `require_room` for a batch of fresh rows, given to a model.

  Raises:
    ConfigError: as `require_room`.
  """
  config = getattr(model, 'config', None)
  if isinstance(config, ModelConfig):
    require_room(config, batch.get('segment_ids'))
