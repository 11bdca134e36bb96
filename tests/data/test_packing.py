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


@pytest.mark.parametrize('texts', [2, 3, 4])
def test_interleaved_texts_take_turns(texts):
  """A failure means that rows lose text, mix it up or never come back to it."""
  size, rows = 1024, 2
  shape = (rows * texts, size)
  # Each target names its text and its place in it.
  targets = np.arange(rows * texts * size, dtype=np.int32).reshape(shape)
  batch = {
      'tokens': targets - 1,
      'targets': targets,
      'mask': np.ones(shape, np.float32),
      'segment_ids': 1 + targets // 300,
      'target_bytes': targets % 5,
  }
  returns = 0
  for seed in range(5):
    rng = np.random.default_rng(seed)
    mixed = packing.interleave(batch, rng, texts=texts)
    for key in KEYS:
      assert mixed[key].shape == (rows, size * texts)
      assert mixed[key].dtype == batch[key].dtype
    assert (mixed['segment_ids'] == 1).all()
    np.testing.assert_array_equal(mixed['tokens'], mixed['targets'] - 1)
    np.testing.assert_array_equal(
        mixed['target_bytes'], mixed['targets'] % 5
    )
    for row in range(rows):
      text, place = np.divmod(mixed['targets'][row], size)
      assert {*text} == set(range(row * texts, (row + 1) * texts))
      for t in {*text}:  # Each in order, and whole.
        np.testing.assert_array_equal(place[text == t], np.arange(size))
      ends = np.flatnonzero(np.diff(text)) + 1
      turns = np.diff([0, *ends, size * texts])
      # The last text may take several turns in a row.
      assert (turns[:-1] <= 512).all()
      finished = [place[end - 1] == size - 1 for end in ends]
      short = turns[:-1][~np.array(finished, bool)] < 64
      assert not short.any()
      returns += len(turns) - texts
  assert returns > 0


def test_padding_stays_padding():
  """A failure means that memories read the filling of a last row."""
  row = packing.empty_row(8)
  row['segment_ids'][:3] = (1, 1, 2)
  batch = {key: np.stack([x, x]) for key, x in row.items()}
  mixed = packing.interleave(batch, np.random.default_rng(0), texts=2)
  np.testing.assert_array_equal(
      mixed['segment_ids'], [[1, 1, 1, 0, 0, 0, 0, 0] * 2]
  )


def _tiles(row, tile):
  """Tiles of a grid that restarts with each segment of a row, by hand."""
  sizes = np.bincount(row['segment_ids'])[1:]
  return sum(-(-int(size) // tile) for size in sizes)


@pytest.mark.parametrize('tile', [1, 4, 16, 64])
@pytest.mark.parametrize('align', [1, 16])
def test_rows_have_room_on_the_grid(tile, align):
  """A failure means that short documents end a run with a loss of NaN.

  400 documents of about 6 tokens take a tile each, however long a tile is.
  """
  rng = np.random.default_rng(5)
  sizes = [*rng.integers(1, 12, 400), 300, *rng.integers(1, 12, 50), 7, 129]
  documents = [
      (np.arange(n, dtype=np.int32) + 1, np.ones(n, np.int32)) for n in sizes
  ]
  options = dict(length=256, align=align, bos=BOS, tile=tile)
  packed = list(packing.pack(documents, **options))
  room = min(256, 2 * -(-256 // tile) + 8)
  most = max(_tiles(p.row, tile) for p in packed)
  assert most <= room
  if tile == 64 or tile == 16 and align == 1:
    assert most == room  # Rows are as full as they may be.
  text = np.concatenate([p.row['targets'][p.row['mask'] > 0] for p in packed])
  np.testing.assert_array_equal(text, np.concatenate([d for d, _ in documents]))
  plain = list(packing.pack(documents, **options | {'tile': 1}))
  if tile == 1 or tile == 4 and align == 16:
    for one, other in zip(packed, plain, strict=True):
      for key in KEYS:
        np.testing.assert_array_equal(one.row[key], other.row[key])


@pytest.mark.parametrize('tile', [1, 16])
def test_pieces_pack_as_whole_documents(tile):
  """A failure means that a long document is another one for being cut."""
  rng = np.random.default_rng(6)
  documents = _documents(7)
  cut = []
  for ids, num_bytes in documents:
    edges = np.unique(np.r_[0, rng.integers(0, len(ids) + 1, 4), len(ids)])
    cut += [
        (ids[a:b], num_bytes[a:b], b == len(ids))
        for a, b in zip(edges, edges[1:])
    ]
  options = dict(length=32, align=8, bos=BOS, tile=tile)
  whole = [p.row for p in packing.pack(documents, **options)]
  pieces, places, read = [], [], 0

  def stream():
    nonlocal read
    for piece in cut:
      read += 1
      yield piece

  for row, offset in packing.pack(stream(), **options):
    pieces.append(row)
    places.append((read - (offset > 0), offset))
  for one, other in zip(whole, pieces, strict=True):
    for key in KEYS:
      np.testing.assert_array_equal(one[key], other[key])
  # Goes on from any row, by the piece that it ends in.
  for index, (piece, offset) in enumerate(places):
    rest = packing.pack(cut[piece:], offset=offset, **options)
    for got, want in zip(rest, whole[index + 1 :], strict=True):
      for key in KEYS:
        np.testing.assert_array_equal(got.row[key], want[key])
