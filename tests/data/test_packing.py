"""Packing, against an oracle that lays out one token at a time."""

import numpy as np
import pytest

from hope_jax.data import packing

BOS = 10


def _documents(seed, *, count=30, longest=60):
  """Documents of 0 to `longest` tokens, with made-up bytes for each token."""
  rng = np.random.default_rng(seed)
  return [
      (rng.integers(11, 300, n), rng.integers(1, 5, n))
      for n in rng.integers(0, longest, count)
  ]


def _oracle(documents, length, align):
  """Lays documents out token by token; returns rows of five-tuples."""
  rows, row, segment = [], [], 0
  blank = (0, 0, 0.0, 0, 0)
  for ids, num_bytes in documents:
    previous, start = BOS, True
    for token, size in zip(ids.tolist(), num_bytes.tolist()):
      while start and len(row) < length and len(row) % align:
        row.append(blank)
      if len(row) == length:
        rows.append(row)
        row, segment, start = [], 0, True
      segment += start
      row.append((previous, token, 1.0, segment, size))
      previous, start = token, False
  if row:
    rows.append(row + [blank] * (length - len(row)))
  return rows


KEYS = ('tokens', 'targets', 'mask', 'segment_ids', 'target_bytes')


@pytest.mark.parametrize('length', [16, 21, 64])
@pytest.mark.parametrize('align', [1, 4, 16, 100])
@pytest.mark.parametrize('seed', [0, 1])
def test_rows_match_the_oracle(length, align, seed):
  """A failure means that tokens, targets, ids or padding are misplaced."""
  documents = _documents(seed)
  packed = list(packing.pack(documents, length=length, align=align, bos=BOS))
  expected = _oracle(documents, length, align)
  assert len(packed) == len(expected)
  for (row, _), want in zip(packed, expected):
    for key, column in zip(KEYS, zip(*want)):
      np.testing.assert_array_equal(row[key], column, err_msg=key)
      kind = np.float32 if key == 'mask' else np.int32
      assert row[key].dtype == kind, key


@pytest.mark.parametrize('align', [1, 8])
def test_every_token_is_a_target_once(align):
  """A failure means that text is lost or twice there: bits per byte lie."""
  documents = _documents(2)
  rows = [
      p.row for p in packing.pack(documents, length=32, align=align, bos=BOS)
  ]
  counts = [row['mask'] > 0 for row in rows]
  targets = np.concatenate([r['targets'][m] for r, m in zip(rows, counts)])
  text = np.concatenate([ids for ids, _ in documents])
  np.testing.assert_array_equal(targets, text)
  total = sum(r['target_bytes'].sum() for r in rows)
  assert total == sum(b.sum() for _, b in documents)
  for row, mask in zip(rows, counts):
    np.testing.assert_array_equal(mask, row['segment_ids'] > 0)
    np.testing.assert_array_equal(row['target_bytes'][~mask], 0)


def test_documents_start_on_the_grid():
  """A failure means that the memories' chunks straddle two documents."""
  documents = _documents(3)
  starts = 0
  for row, _ in packing.pack(documents, length=48, align=16, bos=BOS):
    ids = row['segment_ids']
    for position in np.flatnonzero(np.diff(ids, prepend=0)):
      if ids[position]:
        assert position % 16 == 0
        starts += row['tokens'][position] == BOS
  assert starts == sum(len(d) > 0 for d, _ in documents)


def test_goes_on_from_any_row():
  """A failure means that a resumed run reads other rows than one unbroken."""
  documents = _documents(4)
  consumed = 0

  def stream():
    nonlocal consumed
    for document in documents:
      consumed += 1
      yield document

  options = {'length': 16, 'align': 4, 'bos': BOS}
  unbroken, places = [], []
  for row, offset in packing.pack(stream(), **options):
    unbroken.append(row)
    # Inside a document: its index; else that of the next one.
    places.append((consumed - (offset > 0), offset))
  for index, (document, offset) in enumerate(places):
    rest = packing.pack(documents[document:], offset=offset, **options)
    rest = [p.row for p in rest]
    assert len(rest) == len(unbroken) - index - 1
    for got, want in zip(rest, unbroken[index + 1 :]):
      for key in KEYS:
        np.testing.assert_array_equal(got[key], want[key])


def test_nothing_gives_nothing():
  """A failure means that an empty source yields rows of mere padding."""
  empty = (np.zeros(0, np.int32), np.zeros(0, np.int32))
  for documents in ([], [empty, empty]):
    assert not list(packing.pack(documents, length=8, align=1, bos=BOS))


class _Fixed:
  """A generator that switches at one place."""

  def __init__(self, place):
    self.place = place

  def random(self):
    return 0.0

  def integers(self, low, high):
    assert low <= self.place < high
    return self.place


@pytest.mark.parametrize('seed', range(4))
def test_a_switch_moves_text_and_keeps_every_target(seed):
  """A failure means that rows lose text, or learn from a wrong token ahead."""
  length, align = 32, 4
  rows = [
      packed.row
      for packed in packing.pack(
          _documents(seed), length=length, align=align, bos=BOS
      )
  ]
  batch = {key: np.stack([row[key] for row in rows[:5]]) for key in KEYS}
  for place in range(1, length // align):
    mixed = packing.switch(batch, _Fixed(place), share=0.5, align=align)
    cut = place * align
    for i in range(5):
      for key in KEYS:
        assert mixed[key].dtype == batch[key].dtype
        if key != 'segment_ids':
          np.testing.assert_array_equal(
              mixed[key][i, :cut], batch[key][i, :cut]
          )
          np.testing.assert_array_equal(
              mixed[key][i, cut:], batch[key][i - 1, cut:]
          )
      ids, head = mixed['segment_ids'][i], batch['segment_ids'][i]
      tail = batch['segment_ids'][i - 1, cut:]
      np.testing.assert_array_equal(ids[:cut], head[:cut])
      np.testing.assert_array_equal(ids > 0, mixed['mask'][i] > 0)
      # Documents of the tail are told apart as before.
      np.testing.assert_array_equal(np.diff(ids[cut:]) != 0, np.diff(tail) != 0)
      joins = head[cut - 1] > 0 and tail[0] > 0
      gap = ids[cut] == head[cut - 1] == 0
      assert (ids[cut] == ids[cut - 1]) == (joins or gap)
      # A start that is not the tail's own would be off the grid of chunks.
      starts = np.flatnonzero((np.diff(ids) != 0) & (ids[1:] > 0)) + 1
      assert not (starts % align).any()


def test_a_switch_happens_as_often_as_asked():
  """A failure means that data.switch is not a share of batches."""
  batch = {
      key: np.stack([x, x]) for key, x in packing.empty_row(32).items()
  }
  count = lambda share: sum(
      packing.switch(batch, rng, share=share, align=4) is not batch
      for rng in map(np.random.default_rng, range(200))
  )
  assert count(0.0) == 0 and count(1.0) == 200 and 60 < count(0.5) < 140
