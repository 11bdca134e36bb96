"""Documents of any length into rows of one length.

Documents follow one another in a row; one that does not fit goes on in the
next row. Every document starts at a multiple of `align` in its row, so that the
chunk grid of the memories meets its beginning; the gap before it is padding. A
row is a sequence of its own to the model: memory starts fresh at its first
token, also where that token continues a document.

The token before the first target of a row's continued piece is the document's
own previous token, so that a cut costs context but no prediction: every token
of every document is the target exactly once.
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
    'targets', 'segment_ids' (1.. for the pieces of documents in a row, 0 for
    padding) and 'target_bytes' (0 for padding), and float32 'mask' (1 at
    targets, 0 for padding), all [T]. The last row is filled up with padding.
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


def switch(
    batch: Row, rng: np.random.Generator, *, share: float, align: int
) -> Row:
  """Lets the rows of a batch go on in each other's text, memory and all.

  From one place on, the same in all rows, row i holds what row i - 1 held. The
  text that goes on there belongs to the document before it, as far as segment
  ids tell, so that no memory restarts: what comes is not what it was written
  for, and only a model that lets go of the old text reads on unharmed. Where
  either side is padding there is nothing to join, and a document starts. Every
  target is kept, with the token before it.

  Args:
    batch: arrays of `pack`, [B, T, ...].
    rng: decides whether and where.
    share: of batches that switch, in [0, 1].
    align: the switch is at a multiple of this many tokens.

  Returns:
    The batch, a new one if it switches.
  """
  length = batch['tokens'].shape[1]
  if length <= align or rng.random() >= share:
    return batch
  cut = align * int(rng.integers(1, -(-length // align)))
  mixed = {
      key: np.concatenate([x[:, :cut], np.roll(x[:, cut:], 1, axis=0)], axis=1)
      for key, x in batch.items()
  }
  ids = mixed['segment_ids']
  before, after = ids[:, cut - 1 : cut], ids[:, cut : cut + 1]
  joined = (before > 0) & (after > 0)
  first = np.where(joined, before, ids[:, :cut].max(1, keepdims=True) + 1)
  # The ids of a row's text grow by one from document to document.
  start = np.where(after > 0, after, 1)
  ids[:, cut:] = np.where(ids[:, cut:] > 0, ids[:, cut:] - start + first, 0)
  return mixed
