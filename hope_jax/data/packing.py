"""Documents of any length into rows of one length.

Documents follow one another in a row; one that does not fit goes on in the
next row. Every document starts at a multiple of `align` in its row, so that the
chunk grid of the memories meets its beginning; the gap before it is padding. A
row is a sequence of its own to the model: memory starts fresh at its first
token, also where that token continues a document.

Where a row goes on with a document, the token before its first target is the
document's own previous token, so that a cut costs context but no prediction:
every token of every document is the target exactly once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hope_jax.nested import levels

Row = dict[str, np.ndarray]


class Packed(NamedTuple):
  """A row, and where the next one begins."""

  row: Row
  # Tokens that rows so far hold of the document, or piece, read last; 0: all of
  # the document, the next row begins with the next one.
  offset: int


def empty_row(length: int) -> Row:
  """Returns a row of padding; see `pack` for its arrays."""
  return {
      'tokens': np.zeros(length, np.int32),
      'targets': np.zeros(length, np.int32),
      'mask': np.zeros(length, np.float32),
      'segment_ids': np.zeros(length, np.int32),
      'target_bytes': np.zeros(length, np.int32),
  }


def pack(
    documents: Iterable[Sequence[Any]],
    *,
    length: int,
    align: int,
    bos: int,
    tile: int = 1,
    offset: int = 0,
) -> Iterator[Packed]:
  """Packs documents into rows, in order, reading no further than it must.

  A document d gives targets d and tokens `[bos] + d[:-1]`.

  Args:
    documents: token ids [n] of each document and the bytes each stands for [n];
      empty ones leave no trace. Or pieces of documents, with a third entry,
      whether the document ends with it; such a piece is not empty.
    length: tokens of a row, T.
    align: documents start at multiples of this many tokens.
    bos: the token ahead of each document's first.
    tile: tokens of a tile of the model's chunk grid, which restarts with each
      document: a row ends where the grid has no room for more, see
      `levels.room`; what follows goes on in the next row.
    offset: tokens of the first document, or piece, to pass over: with the
      documents from the one read last on, packing goes on where an earlier call
      stopped.

  Yields:
    Each row, and where the next one begins. The row has int32 'tokens',
    'targets', 'segment_ids' (1.. for the segments of a row, 0 for padding) and
    'target_bytes' (0 for padding), and float32 'mask' (1 at targets, 0 for
    padding), all [T]. The last row is filled up with padding.
  """
  row, position, segment, before = empty_row(length), 0, 0, bos
  start = None  # where in the row the open segment starts; None: none is open
  room = levels.room(length, tile)  # tiles for the open segment and after it
  for piece in documents:
    ids, num_bytes, *rest = piece
    ends = rest[0] if rest else True
    if offset and len(ids):
      before = ids[min(offset, len(ids)) - 1]
    while offset < len(ids):
      if start is None:
        segment, start = segment + 1, position
      size = min(
          length - position, len(ids) - offset, start + room * tile - position
      )
      end = position + size
      row['targets'][position:end] = ids[offset : offset + size]
      row['tokens'][position] = before
      row['tokens'][position + 1 : end] = row['targets'][position : end - 1]
      row['mask'][position:end] = 1
      row['segment_ids'][position:end] = segment
      row['target_bytes'][position:end] = num_bytes[offset : offset + size]
      offset += size
      before, position = ids[offset - 1], end
      done = ends and offset == len(ids)
      full = position >= length or position == start + room * tile
      if done:
        room -= -(-(end - start) // tile)
        position, start = -(-end // align) * align, None
        full = full or position >= length or not room
      # Asked here, not when the next document is read: a full row must not wait
      # for it, and `offset` must speak of the piece that the row ends with.
      if full:
        yield Packed(row, 0 if done else offset)
        row, position, segment = empty_row(length), 0, 0
        start, room = None, levels.room(length, tile)
    offset -= len(ids)
    if ends:
      offset, before = 0, bos
  if segment:
    yield Packed(row, 0)


def interleave(batch: Row, rng: np.random.Generator, *, texts: int) -> Row:
  """Lets texts take turns in a row, all with one memory.

  A turn is of 64 to 512 tokens, then another text goes on from where it was
  left, until all are read to their end. What a memory holds of a text is
  wanted again after others have been read, and what it holds of those must do
  no harm. Every target is kept, with the token ahead of it in its own text.

  Args:
    batch: arrays of `pack`, [B * texts, T / texts]; no padding inside a text.
    rng: decides who takes turns when.
    texts: in each row.

  Returns:
    The batch, [B, T]. A row is one segment: documents that begin in it start
    no memory.
  """
  size = batch['tokens'].shape[1]
  rows = []
  for first in range(0, len(batch['tokens']), texts):
    turns = _turns(rng, texts=texts, size=size)
    rows.append(
        {
            key: np.concatenate([x[first + t][part] for t, part in turns])
            for key, x in batch.items()
        }
    )
  mixed = {key: np.stack([row[key] for row in rows]) for key in batch}
  return mixed | {'segment_ids': np.minimum(mixed['segment_ids'], 1)}


def _turns(
    rng: np.random.Generator, *, texts: int, size: int
) -> list[tuple[int, slice]]:
  """Returns which text is read from where to where, turn by turn."""
  read, turns, last = [0] * texts, [], None
  while live := [t for t in range(texts) if read[t] < size]:
    text = int(rng.choice([t for t in live if t != last] or live))
    end = min(size, read[text] + int(rng.integers(64, 513)))
    turns.append((text, slice(read[text], end)))
    read[text], last = end, text
  return turns
