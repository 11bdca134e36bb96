"""How packed documents reach the layers, and what is handed over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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
  if segment_ids is None:
    position = None
    if not fresh:
      position = place.position[:, None] + jnp.arange(length)
    end = place.position + length
    return Packing(None, None, position), Place(place.segment, end)
  ids = segment_ids.astype(jnp.int32)
  present = ids != 0
  # Padding belongs to the document before it: carry the last id forward.
  index = jnp.where(present, jnp.arange(length), -1)
  latest = jax.lax.cummax(index, axis=1)
  held = jnp.where(
      latest >= 0,
      jnp.take_along_axis(ids, jnp.maximum(latest, 0), axis=1),
      place.segment[:, None],
  )
  previous = jnp.concatenate([place.segment[:, None], held[:, :-1]], axis=1)
  starts = present & (ids != previous)
  count = jnp.cumsum(present, axis=1) - present
  base = jax.lax.cummax(jnp.where(starts, count, -1), axis=1)
  position = jnp.where(
      base >= 0, count - base, count + place.position[:, None]
  )
  end = jnp.where(
      jnp.any(starts, axis=1),
      jnp.sum(present, axis=1) - jnp.max(base, axis=1),
      place.position + jnp.sum(present, axis=1),
  )
  return Packing(starts, present, position), Place(held[:, -1], end)
