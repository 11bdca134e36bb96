"""JSON Lines, Parquet and compressed files: what is read, what is refused."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import pickle

import numpy as np
import pytest

from hope_jax import data
from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import records, sources, texts
from hope_jax.data.documents import numbered_ranks, ranks

TEXTS = ['first', 'é 漢 🦙\n', 'a "quoted" \\ line', 'x' * 70]


def _open(path, **fields):
  return sources.open_source(
      DataConfig(source='files', path=str(path), **fields)
  )


def _all(source):
  return [source[i] for i in range(len(source))]


def _lines(path, texts_, field='text'):
  lines = (json.dumps({'n': 1, field: t}) + '\n' for t in texts_)
  path.write_text(''.join(lines))
  return path


def _parquet(path, columns, **options):
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
  import pyarrow.parquet as pq

  pq.write_table(pa.table(columns), path, **options)
  return path


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_lines_are_documents(tmp_path, end):
  """A failure means that braces and keys are learned, or documents joined."""
  lines = [json.dumps({'text': t, 'n': 1}) for t in TEXTS]
  lines[1:1] = ['', '   ', json.dumps({'text': ''})]
  path = tmp_path / 'a.jsonl'
  # A mark of byte order, blank lines, an empty text, no newline at the end.
  path.write_bytes(b'\xef\xbb\xbf' + end.join(lines).encode())
  expected = list(zip(['a.jsonl:1', 'a.jsonl:5', 'a.jsonl:6', 'a.jsonl:7'],
                      [t.encode() for t in TEXTS]))
  assert _all(_open(path)) == expected
  _lines(tmp_path / 'b.jsonl', TEXTS, field='body')
  found = _all(_open(tmp_path / 'b.jsonl', text_field='body'))
  assert [t for _, t in found] == [t.encode() for t in TEXTS]
  # Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
  (tmp_path / 'c.jsonl').write_text('{"text": "a\\ud83db"}')
  ((_, text),) = _all(_open(tmp_path / 'c.jsonl'))
  assert text == b'a\xed\xa0\xbdb'


@pytest.mark.parametrize('line,what', [
    ('{"text": "a"', 'is not JSON'),
    ('not json', 'is not JSON'),
    ('{"text": "a"} {"text": "b"}', 'is not JSON'),
    ('["text"]', 'is list'),
    ('null', 'is NoneType'),
    ('{"body\\nx": "a"}', r"no 'text', but 'body\nx'"),
    ('{"text": null}', 'holds NoneType'),
    ('{"text": 3}', 'holds int'),
    ('{"text": ["a"]}', 'holds list'),
    ('[' * 5000, 'is not JSON'),
    ('{"text": ' + '9' * 5000 + '}', 'is not JSON'),
    ('{"text": "\udcff"}', 'is not JSON'),
])
def test_a_bad_line_is_named(tmp_path, line, what):
  """A failure means a traceback, or text that is lost without a word."""
  path = _lines(tmp_path / 'a.jsonl', ['one', 'two'])
  with path.open('ab') as file:
    file.write(b'\n' + line.encode('utf-8', 'surrogateescape') + b'\n')
  with pytest.raises(ConfigError, match='line 4 of') as caught:
    _open(path)
  message = str(caught.value)
  assert '\n' not in message and what in message and repr(str(path)) in message
  assert len(message) < 500


def test_a_bad_line_far_on_is_named_when_it_is_reached(tmp_path, monkeypatch):
  """A failure means that what is not checked ahead stops a run in pages."""
  monkeypatch.setattr(records, '_CHECKED', 10)
  monkeypatch.setattr(data.pipeline, '_WINDOW_TOKENS', 64)
  path = _lines(tmp_path / 'a.jsonl', ['one' * 100, 'two' * 100] * 5)
  path.write_bytes(path.read_bytes() + b'{}\n')
  batches = data.train_batches(
      DataConfig(source='files', path=str(path), sequence_length=16)
  )
  with pytest.raises(ConfigError, match='line 11 of') as caught:
    for _ in range(99):
      next(batches)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('module,suffix', [
    (gzip, '.gz'), (bz2, '.bz2'), (lzma, '.xz')
])
def test_compressed_files(tmp_path, module, suffix):
  """A failure means that the bytes of an archive are trained on."""
  plain = _lines(tmp_path / 'a.jsonl', TEXTS).read_bytes()
  packed = tmp_path / f'b.jsonl{suffix}'
  packed.write_bytes(module.compress(plain))
  assert [t for _, t in _all(_open(packed))] == [t.encode() for t in TEXTS]
  (tmp_path / f'c.txt{suffix}').write_bytes(module.compress(b'text'))
  assert _all(_open(tmp_path / f'c.txt{suffix}')) == [
      (f'c.txt{suffix}', b'text')
  ]
  for content in (module.compress(plain)[:-9], b'nothing of the kind'):
    broken = tmp_path / f'd{len(content)}.jsonl{suffix}'
    broken.write_bytes(content)
    with pytest.raises(ConfigError, match='cannot be unpacked') as caught:
      _open(broken)
    assert '\n' not in str(caught.value)


def test_zstd_says_what_to_do(tmp_path):
  """A failure means that the bytes of an archive are trained on."""
  (tmp_path / 'a.jsonl.zst').write_bytes(b'(\xb5/\xfd')
  with pytest.raises(ConfigError, match='zstd'):
    _open(tmp_path / 'a.jsonl.zst')
  twice = gzip.compress(gzip.compress(b'{"text": "a"}'))
  (tmp_path / 'a.jsonl.gz.gz').write_bytes(twice)
  with pytest.raises(ConfigError, match='compressed twice'):
    _open(tmp_path / 'a.jsonl.gz.gz')


@pytest.mark.parametrize('kind', ['string', 'large_string', 'dictionary'])
def test_rows_of_parquet_are_documents(tmp_path, kind, monkeypatch):
  """A failure means that a column is misread where pages or groups meet."""
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
  monkeypatch.setattr(records, '_CHUNK', 200)
  rng = np.random.default_rng(0)
  rows = [TEXTS[i] * int(n) for i, n in
          zip(rng.integers(0, 4, 300), rng.integers(0, 4, 300))]
  column = pa.array(rows, pa.string())
  if kind == 'dictionary':
    column = column.dictionary_encode()
  elif kind == 'large_string':
    column = column.cast(pa.large_string())
  path = _parquet(
      tmp_path / 'a.parquet', {'n': list(range(300)), 'text': column},
      row_group_size=70,
  )
  source = _open(path)
  assert _all(source) == [
      (f'a.parquet:{i}', t.encode()) for i, t in enumerate(rows) if t
  ]
  _check_ranks(source)


def _mixed(name):
  """SplitMix64 of a record's number, begun at its file's hash, in integers."""
  name, number = name.rsplit(':', 1)
  digest = hashlib.sha256(name.encode()).digest()[:6]
  z = int.from_bytes(digest, 'big') + int(number) * 0x9E3779B97F4A7C15
  z %= 2**64
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
  z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
  return (z ^ z >> 31) / 2**64


def _check_ranks(source):
  names = [name for name, _ in _all(source)]
  expected = [
      _mixed(name) if ':' in name
      else int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], 'big')
      / 2**48
      for name in names
  ]
  np.testing.assert_allclose(ranks(source), expected, rtol=1e-12)


def test_a_hash_of_numbers_is_even():
  """A failure means that held-out records lie in runs, or are too many."""
  rank = numbered_ranks('a.jsonl', np.arange(200_000))
  counts = np.histogram(rank, 100, (0, 1))[0]
  assert abs(counts - 2000).max() < 5 * 2000**0.5
  held = rank < 0.05
  together = (held[1:] & held[:-1]).mean()
  assert together == pytest.approx(0.05**2, rel=0.15)


def test_a_long_file_costs_its_texts_and_no_more(tmp_path):
  """A failure means that lines are parsed, or groups kept, before their turn.

  What opening does for each of a million lines is seconds; for each group of
  rows, the memory of the whole file.
  """
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
  import pyarrow.parquet as pq

  path = tmp_path / 'a.jsonl'
  line = '{"text": "a"}\n'
  path.write_text(line * records._CHECKED_LINES + 'not json\n')
  assert len(_open(path)) == records._CHECKED_LINES + 1
  path = tmp_path / 'a.parquet'
  rows = pa.table({'text': [f'{i} ' + 'a b c d e' * 2000 for i in range(500)]})
  with pq.ParquetWriter(path, rows.schema, compression='none') as writer:
    for _ in range(10):  # 9 MB each
      writer.write_table(rows)
  before = pa.total_allocated_bytes()
  with pq.ParquetFile(path) as reader:
    most = max(
        pa.total_allocated_bytes() - before
        for _ in records._batches(reader, 'text')
    )
  assert most < 2**26, most


def test_parquet_that_cannot_be_read_is_one_line(tmp_path):
  """A failure means a traceback for a column or a file that is none."""
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
  import pyarrow.parquet as pq

  path = _parquet(tmp_path / 'a.parquet', {
      'text': ['a', 'b', None], 'n': [1, 2, 3], 'words': [['a'], [], []],
  })
  twice, broken = tmp_path / 'twice.parquet', tmp_path / 'b.parquet'
  pq.write_table(pa.table([['a'], ['b']], names=['text', 'text']), twice)
  broken.write_bytes(path.read_bytes()[:-20])
  for file, field, what in (
      (path, 'text', 'row 2 of'), (path, 'n', 'holds int64'),
      (path, 'words', 'holds list'), (path, 'body', "'text', 'n', 'words'"),
      (broken, 'text', 'cannot be read as Parquet'),
      (twice, 'text', "several columns 'text'"),
  ):
    with pytest.raises(ConfigError, match=what) as caught:
      _open(file, text_field=field)
    assert '\n' not in str(caught.value)


def test_nothing_in_a_file_is_run(tmp_path):
  """A failure means that a data file from a stranger runs on this machine.

  A harmless pickle that would leave a file, where an old pyarrow unpickled.
  """
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')

  class Touches:

    def __reduce__(self):
      return open, (str(tmp_path / 'was_run'), 'w')

  pickled = pickle.dumps(Touches())
  assert os.path.exists(tmp_path / 'was_run') is False
  field = pa.field('text', pa.string(), metadata={
      b'ARROW:extension:name': b'arrow.py_extension_type',
      b'ARROW:extension:metadata': pickled,
  })
  table = pa.table([['a', 'b']], schema=pa.schema([field]))
  _parquet(tmp_path / 'a.parquet', {})
  import pyarrow.parquet as pq

  pq.write_table(table, tmp_path / 'a.parquet')
  _lines(tmp_path / 'b.jsonl', ['../../up', pickled.decode('latin-1')])
  found = [t for _, t in _all(_open(tmp_path / '*'))]
  assert found[:2] == [b'a', b'b'] and found[2] == b'../../up'
  assert sorted(os.listdir(tmp_path)) == ['a.parquet', 'b.jsonl']


def test_files_of_all_kinds_in_one_glob(tmp_path):
  """A failure means that a folder of several kinds of files is half read."""
  (tmp_path / 'a.txt').write_text('a')
  _lines(tmp_path / 'b.jsonl', ['b1', 'b2'])
  (tmp_path / 'c.txt').write_text('c')
  (tmp_path / 'd.jsonl').write_text('\n\n')
  (tmp_path / 'e.txt').write_text('')
  source = _open(tmp_path / '*')
  assert _all(source) == [('a.txt', b'a'), ('b.jsonl:1', b'b1'),
                          ('b.jsonl:2', b'b2'), ('c.txt', b'c')]
  assert [source.name(i) for i in range(4)] == [n for n, _ in _all(source)]
  _check_ranks(source)
  with pytest.raises(IndexError):
    _ = source[4]
  with pytest.raises(ConfigError, match='only empty files'):
    _open(tmp_path / 'd.jsonl')


def test_long_records_are_read_late(tmp_path, monkeypatch):
  """A failure means that sixteen long records are in memory at a time."""
  monkeypatch.setattr(texts, 'PIECE', 100)
  long = 'long ' * 100
  for path in (_lines(tmp_path / 'a.jsonl', ['short', long]),
               _parquet(tmp_path / 'b.parquet', {'text': ['short', long]})):
    (_, short), (_, late) = _all(_open(path))
    assert short == b'short' and not isinstance(late, bytes)
    assert len(late) == 500 and late[5:10] == b'long '
  # A single one is cut without being read twice over.
  train, heldout = sources.split(
      _open(_lines(tmp_path / 'c.jsonl', [long])), 0.1
  )
  assert train[0][1][:] == long.encode()[:450]
  assert heldout[0][1][:] == long.encode()[450:]


def test_a_changed_file_is_opened_anew(tmp_path):
  """A failure means that an index of a file that is gone is used."""
  path = _lines(tmp_path / 'a.jsonl', ['one'])
  assert len(_open(path)) == 1
  _lines(path, ['one', 'two'])
  assert len(_open(path)) == 2
