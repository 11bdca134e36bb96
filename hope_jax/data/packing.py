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

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

Row = dict[str, np.ndarray]


class Packed(NamedTuple):
  """A row, and where the next one begins."""

  row: Row
  # Tokens that rows so far hold of the document read last; 0: all of them, the
  # next row begins with the next document.
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
    documents: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    length: int,
    align: int,
    bos: int,
    offset: int = 0,
) -> Iterator[Packed]:
  """Packs documents into rows, in order, reading no further than it must.

  A document d gives targets d and tokens `[bos] + d[:-1]`.

  Args:
    documents: token ids [n] of each document and the bytes each stands for [n];
      empty ones leave no trace.
    length: tokens of a row, T.
    align: documents start at multiples of this many tokens.
    bos: the token ahead of each document's first.
    offset: tokens of the first document to pass over: with the documents from
      the one read last on, packing goes on where an earlier call stopped.

  Yields:
    Each row, and where the next one begins. The row has int32 'tokens',
    'targets', 'segment_ids' (1.. for the segments of a row, 0 for padding) and
    'target_bytes' (0 for padding), and float32 'mask' (1 at targets, 0 for
    padding), all [T]. The last row is filled up with padding.
  """
  row, position, segment = empty_row(length), 0, 0
  for ids, num_bytes in documents:
    while offset < len(ids):
      size = min(length - position, len(ids) - offset)
      segment += 1
      end = position + size
      row['targets'][position:end] = ids[offset : offset + size]
      row['tokens'][position] = ids[offset - 1] if offset else bos
      row['tokens'][position + 1 : end] = row['targets'][position : end - 1]
      row['mask'][position:end] = 1
      row['segment_ids'][position:end] = segment
      row['target_bytes'][position:end] = num_bytes[offset : offset + size]
      offset += size
      position = -(-end // align) * align
      # Asked here, not when the next document is read: a full row must not wait
      # for it, and `offset` must speak of the document that the row ends with.
      if position >= length:
        yield Packed(row, offset if offset < len(ids) else 0)
        row, position, segment = empty_row(length), 0, 0
    offset = 0
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
