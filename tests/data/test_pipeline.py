"""Batches: what is in them, and that a run can be stopped and gone on with."""

import hashlib
import itertools
import json
import pathlib

import numpy as np
import pytest

from hope_jax import data
from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import pipeline, records, sources
from tests.data.resuming import assert_equal, assert_resumes

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


def _corpus(folder, *, count=60, size=64):
  """Writes documents, each of one byte value repeated, so that any part of a
  text tells which document it is from; returns the glob."""
  for value in range(count):
    (folder / f'{value}.txt').write_bytes(bytes([value]) * size)
  return str(folder / '*.txt')


def _config(path, **fields):
  fields = {'sequence_length': 16, 'batch_size': 2, 'align': 4} | fields
  return DataConfig(source='files', path=path, holdout=0.3, **fields)


def _values(batches):
  """Returns the documents of `_corpus` that some batches are from."""
  return {
      int(v) for b in batches for v in np.unique(b['targets'][b['mask'] > 0])
  }


@pytest.fixture
def small_window(monkeypatch):
  """A shuffle window of 8 rows of 16 tokens, so that a test sees many."""
  monkeypatch.setattr(pipeline, '_WINDOW_TOKENS', 128)


def test_shapes_and_dtypes(tmp_path):
  """A failure means that batches are not what the model's contract says."""
  batch = next(data.train_batches(_config(_corpus(tmp_path))))
  for key in ('tokens', 'targets', 'segment_ids', 'target_bytes'):
    assert (batch[key].shape, batch[key].dtype) == ((2, 16), np.int32)
  assert (batch['mask'].shape, batch['mask'].dtype) == ((2, 16), np.float32)


def test_interleaved_batches_resume_where_they_stopped(tmp_path, small_window):
  """A failure means that a run with data.interleave cannot be gone on with."""
  config = _config(_corpus(tmp_path), interleave=2)
  whole = data.train_batches(config)
  batches = [next(whole) for _ in range(12)]
  other = data.train_batches(config)
  for _ in range(5):
    next(other)
  place = json.loads(json.dumps(other.get_state()))
  again = data.train_batches(config)
  again.set_state(place)
  for batch in batches[5:]:
    assert_equal(next(again), batch)
  plain = data.train_batches(_config(_corpus(tmp_path)))
  assert any(
      (b['targets'] != next(plain)['targets']).any() for b in batches
  )


def test_held_out_documents_are_never_trained_on(tmp_path, small_window):
  """A failure means that the evaluation measures memorised text."""
  config = _config(_corpus(tmp_path))
  batches = data.train_batches(config)
  # Two epochs and more: 40 documents or so of 4 rows, two rows a batch.
  trained = _values(next(batches) for _ in range(200))
  heldout = _values(data.heldout_batches(config))
  assert not trained & heldout
  assert trained | heldout == set(range(60))
  assert {*data.train_text(config)} == trained
  assert {*data.heldout_text(config)} == heldout


def test_resume_gives_the_same_batches(tmp_path, small_window):
  """A failure means that a resumed run is not the run it claims to go on with.

  Documents of uneven length, so that rows end inside them; stops before the
  first batch, inside a window and at its edge, and in later epochs.
  """
  rng = np.random.default_rng(0)
  for i in range(12):
    (tmp_path / f'{i}.txt').write_bytes(
        bytes(rng.integers(0, 256, rng.integers(1, 150)).tolist())
    )
  config = _config(str(tmp_path / '*.txt'))
  assert_resumes(
      config, batches=60, places=(0, 1, 3, 4, 5, 17, 32, 41, 55), following=6
  )


def test_an_iterator_can_be_set_back(tmp_path, small_window):
  """A failure means that a state is only good on an unused iterator."""
  batches = data.train_batches(_config(_corpus(tmp_path)))
  next(batches)
  state = batches.get_state()
  first = [next(batches) for _ in range(9)]
  batches.set_state(state)
  for want in first:
    assert_equal(next(batches), want)


def test_a_first_batch_reads_few_tiny_documents(tmp_path, monkeypatch):
  """If it fails, millions of short lines are read before the first step."""
  monkeypatch.setattr(pipeline, '_WINDOW_DOCUMENTS', 16)
  path = tmp_path / 'tiny.jsonl'
  path.write_text(''.join(f'{{"text": "{i:07}"}}\n' for i in range(2000)))
  config = DataConfig(
      source='files', path=str(path), sequence_length=32, batch_size=2
  )
  batches = pipeline.train_batches(config)
  read = []
  of_line = records.Lines._text
  monkeypatch.setattr(
      records.Lines, '_text',
      lambda self, index: read.append(index) or of_line(self, index),
  )
  next(batches)
  assert len(read) < 500, len(read)


def test_seed_decides_the_order(tmp_path):
  """A failure means runs that cannot be repeated, or seeds without effect."""
  path = _corpus(tmp_path)
  one, same, other = (
      next(data.train_batches(_config(path, seed=seed))) for seed in (1, 1, 2)
  )
  assert_equal(one, same)
  assert not np.array_equal(one['targets'], other['targets'])
  next(data.train_batches(_config(path, seed=-(2**40))))


def test_each_epoch_has_an_order_of_its_own(tmp_path, monkeypatch):
  """A failure means that every epoch repeats the batches of the first.

  With a document in each window of 4 rows, rows tell the order of documents.
  """
  monkeypatch.setattr(pipeline, '_WINDOW_TOKENS', 64)
  config = _config(_corpus(tmp_path, count=20), batch_size=1)
  count = len(set(data.train_text(config)))
  batches = data.train_batches(config)
  rows = [int(next(batches)['targets'][0, 0]) for _ in range(2 * count * 4)]
  first, second = np.reshape(rows, [2, count, 4])[..., 0].tolist()
  assert sorted(first) == sorted(second) == sorted(set(data.train_text(config)))
  assert first != second


def test_processes_share_an_epoch(tmp_path, small_window):
  """A failure means that hosts train on the same text, or miss some."""
  config = _config(_corpus(tmp_path), batch_size=4)
  count = len(set(data.train_text(config)))
  seen = []
  for index in range(2):
    batches = data.train_batches(config, process_index=index, process_count=2)
    # Two rows a batch: the whole windows of 16 rows within the first epoch.
    epoch = [next(batches) for _ in range(count // 2 * 4 // 16 * 16 // 2)]
    assert epoch[0]['tokens'].shape == (2, 16)
    seen.append(_values(epoch))
  assert not seen[0] & seen[1]
  assert len(seen[0] | seen[1]) > 0.7 * count


def test_heldout_batches_hold_every_byte_once(tmp_path):
  """A failure means that held-out bits per byte are of some other text."""
  rng = np.random.default_rng(1)
  for i in range(20):
    (tmp_path / f'{i}.txt').write_bytes(
        bytes(rng.integers(0, 256, rng.integers(1, 99)).tolist())
    )
  config = _config(str(tmp_path / '*.txt'), batch_size=4)
  batches = list(data.heldout_batches(config))
  text = data.heldout_text(config)
  targets = np.concatenate([b['targets'][b['mask'] > 0] for b in batches])
  assert sorted(targets.tolist()) == sorted(text)
  assert sum(b['target_bytes'].sum() for b in batches) == len(text)
  assert all(b['tokens'].shape == (4, 16) for b in batches)
  # Nothing random about it, not even the seed.
  other = _config(str(tmp_path / '*.txt'), batch_size=4, seed=7)
  for left, right in zip(batches, data.heldout_batches(other), strict=True):
    assert_equal(left, right)
  limited = list(data.heldout_batches(config, limit=2))
  assert len(limited) == 2
  assert_equal(limited[1], batches[1])


def test_heldout_processes_see_parts_of_each_batch(tmp_path):
  """A failure means that hosts evaluate different numbers of batches, and hang.
  """
  config = _config(_corpus(tmp_path), batch_size=6)
  whole = list(data.heldout_batches(config))
  parts = [
      list(data.heldout_batches(config, process_index=i, process_count=3))
      for i in range(3)
  ]
  for batch, *shares in zip(whole, *parts, strict=True):
    assert_equal(
        batch,
        {k: np.concatenate([s[k] for s in shares]) for k in batch},
    )


def test_too_little_text_is_one_line(tmp_path):
  """A failure means an endless loop, or training on copies of a short text."""
  (tmp_path / 'short.txt').write_bytes(b'x' * 100)
  path = str(tmp_path / 'short.txt')
  with pytest.raises(ConfigError, match='70 tokens, less than one') as caught:
    data.train_batches(_config(path, sequence_length=128))
  assert '\n' not in str(caught.value)
  # Its held-out share is still a text, padded to a row.
  (batch,) = data.heldout_batches(_config(path, sequence_length=128))
  assert batch['mask'].sum() == 30
  # A sequence's worth is enough.
  batch = next(data.train_batches(_config(path, sequence_length=70)))
  assert batch['mask'].all()


def test_sharing_errors(tmp_path):
  """A failure means that a pod hangs where a line could say why."""
  path = _corpus(tmp_path, count=3)
  with pytest.raises(ConfigError, match='data.batch_size') as caught:
    data.train_batches(_config(path, batch_size=4), process_count=3)
  assert '\n' not in str(caught.value)
  with pytest.raises(ConfigError, match='documents for 8') as caught:
    data.train_batches(_config(path, batch_size=8), process_count=8)
  assert '\n' not in str(caught.value)


def test_a_tokenizer_goes_through(tmp_path):
  """A failure means that targets of a tokenizer's ids lose text or its bytes.
  """
  tokenizers = pytest.importorskip(
      'tokenizers', reason='the tokenizers library is not installed'
  )
  words = [f'w{i}' for i in range(40)]
  vocabulary = {w: i for i, w in enumerate(['<s>', '?', *words])}
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(vocabulary, unk_token='?')
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(tmp_path / 'words.json'))
  for i in range(10):
    text = ' '.join(words[i:] + words[:i])
    (tmp_path / f'{i}.txt').write_text(text)
  config = _config(
      str(tmp_path / '*.txt'), tokenizer=str(tmp_path / 'words.json')
  )
  assert data.vocab_size(config) == 42
  batches = list(data.heldout_batches(config))
  text = data.heldout_text(config)
  assert sum(b['target_bytes'].sum() for b in batches) == len(text)
  # Documents were joined without a space; each has all of the words once.
  assert sum(b['mask'].sum() for b in batches) == 40 * (text.count(b'w') // 40)
  assert next(data.train_batches(config))['tokens'].max() < 42


def test_the_standard_library_is_the_default():
  """A failure means that the first command of a newcomer has no data."""
  config = DataConfig()
  batch = next(data.train_batches(config))
  assert batch['tokens'].shape == (8, 512)
  # Mostly full rows, of many documents.
  assert batch['mask'].mean() > 0.9
  heldout = data.heldout_text(config)
  assert len(heldout) > 100_000
  assert len(data.train_text(config)) > 10 * len(heldout)


@pytest.mark.parametrize(
    'name', ['tinyshakespeare/input.txt', 'wikitext2/*.txt']
)
def test_real_text(name):
  """A failure means that a plain text file from outside cannot be trained on.
  """
  path = SHARED / name
  if not path.parent.exists():
    pytest.skip(f'no real text at {path.parent}')
  config = DataConfig(source='files', path=str(path))
  train, heldout = data.train_text(config), data.heldout_text(config)
  whole = b''.join(p.read_bytes() for p in sorted(path.parent.glob(path.name)))
  assert len(train) + len(heldout) == len(whole)
  assert train in whole and heldout in whole
  if '*' not in name:
    assert train + heldout == whole
  batches = data.heldout_batches(config)
  assert sum(b['target_bytes'].sum() for b in batches) == len(heldout)
  # A training row is a part of the text, after the newline it starts with.
  batch = next(data.train_batches(config))
  row = bytes(batch['targets'][0].tolist())
  assert batch['mask'].all() and row in train + train


def test_sources_keep_to_their_interface(tmp_path):
  """A failure means that a split of a source cannot be split or read again."""
  source = sources.open_source(_config(_corpus(tmp_path, count=9)))
  train, heldout = sources.split(source, 0.4)
  for part in (train, heldout):
    assert [part.name(i) for i in range(len(part))] == [
        name for name, _ in (part[i] for i in range(len(part)))
    ]
  assert len(sources.split(train, 0.5)[0]) + len(
      sources.split(train, 0.5)[1]
  ) == len(train)


def _hash(batches, count):
  digest = hashlib.sha256()
  for batch in itertools.islice(batches, count):
    for key in sorted(batch):
      digest.update(batch[key].astype('<i4').tobytes())
  return digest.hexdigest()[:16]


@pytest.mark.parametrize('fields,train,heldout', [
    ({}, 'b4c2dc3e978bb107', '78121f7c7ff8f329'),
    ({'interleave': 4, 'seed': 3}, 'ade183678a208a73', '78121f7c7ff8f329'),
    ({'align': 1, 'path': 'one'}, 'f04fc982552c65b0', '68a76d5a2bf72a74'),
])
def test_batches_of_a_seed_stay(tmp_path, monkeypatch, fields, train, heldout):
  """A failure means that the committed results are of other batches.

  The hashes are of the code that results/ were made with. Documents of up to
  400 KB, longer than a piece; and a single one.
  """
  monkeypatch.setattr(pipeline, '_WINDOW_TOKENS', 2**15)
  for i in range(20):
    size = [317, 400_000, 12, 40_001][i % 4] + i
    text = bytes((j * j + i) % 251 for j in range(size % 5000))
    (tmp_path / f'{i}.txt').write_bytes((text * (size // len(text) + 1))[:size])
  (tmp_path / 'one').write_bytes(bytes(range(256)) * 3000)
  path = str(tmp_path / fields.get('path', '*.txt'))
  fields = {'sequence_length': 1024, 'align': 16, **fields, 'path': path}
  config = DataConfig(source='files', batch_size=4, **fields)
  assert _hash(data.train_batches(config), 60) == train
  assert _hash(data.heldout_batches(config), 60) == heldout
