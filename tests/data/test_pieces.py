"""Long documents in pieces: the ids of the whole, at a bounded cost."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hope_jax import data
from hope_jax.config import DataConfig
from hope_jax.data import pieces, rows, texts
from hope_jax.data.tokenizer import ByteTokenizer, FileTokenizer
from tests.data.resuming import assert_resumes

tokenizers = pytest.importorskip(
    'tokenizers', reason='the tokenizers library is not installed'
)
models, pre = tokenizers.models, tokenizers.pre_tokenizers
# Twice the surroundings of a piece, so that a short text has many.
SIZE = 2**13


def _text(seed=0, words=9_000):
  """A text of words, lines, code points of all widths and stray bytes."""
  rng = np.random.default_rng(seed)
  letters = [*'abcdefghij', 'é', 'ů', '漢', '🦙']
  vocabulary = [
      ''.join(rng.choice(letters, rng.integers(1, 8))) for _ in range(300)
  ]
  joints = np.array(
      [' ', ' ', ' ', '  ', '\n', '\n\n    ', ', ', '\r\n', "'s "]
  )
  found = [
      vocabulary[int(w)] + str(j)
      for w, j in zip(rng.integers(0, 300, words), rng.choice(joints, words))
  ]
  return ''.join(found).encode()


TEXT = _text()


def _save(tokenizer, path):
  tokenizer.save(str(path))
  return FileTokenizer(str(path))


def _bpe(path, pre_tokenizer, normalizer=None, alphabet=()):
  tokenizer = tokenizers.Tokenizer(models.BPE(unk_token='?'))
  if normalizer:
    tokenizer.normalizer = normalizer
  if pre_tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizer
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=600, special_tokens=['<s>', '?'], show_progress=False,
      initial_alphabet=list(alphabet), max_token_length=16,
  )
  tokenizer.train_from_iterator(
      TEXT[:20_000].decode(errors='ignore').splitlines(True), trainer
  )
  return _save(tokenizer, path)


@pytest.fixture(
    scope='module',
    params=['byte_level', 'llama_2', 'metaspace', 'no_rule', 'words', 'bert',
            'unigram'],
)
def tokenizer(request, tmp_path_factory):
  """Tokenizers of each kind, most of which mark or drop what begins a text."""
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  kind = request.param
  normalizers = tokenizers.normalizers
  if kind == 'byte_level':
    return _bpe(path, pre.ByteLevel(), alphabet=pre.ByteLevel.alphabet())
  if kind == 'llama_2':
    # One word for the whole text, and a mark before it.
    return _bpe(path, None, normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    ))
  if kind == 'metaspace':
    return _bpe(path, pre.Metaspace(prepend_scheme='first'))
  if kind == 'no_rule':
    return _bpe(path, None, normalizers.NFKC())
  if kind == 'unigram':
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=['<s>', '?'], unk_token='?',
        show_progress=False,
    )
    text = TEXT[:40_000].decode(errors='ignore')
    tokenizer.train_from_iterator([text], trainer)
    return _save(tokenizer, path)
  words = sorted({*TEXT.decode().split()})[:200]
  vocabulary = {w: i for i, w in enumerate(['<s>', '?', *words])}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='?'))
  tokenizer.pre_tokenizer = (
      pre.WhitespaceSplit() if kind == 'words' else pre.BertPreTokenizer()
  )
  if kind == 'bert':
    tokenizer.normalizer = normalizers.BertNormalizer()
  return _save(tokenizer, path)


def _joined(found):
  assert [p.ends for p in found] == [False] * (len(found) - 1) + [True]
  assert all(len(p.ids) for p in found)
  return tuple(np.concatenate([p[i] for p in found]) for i in range(2))


@pytest.mark.parametrize('text', [
    TEXT,
    b'\xff' + TEXT[1:-3].replace(b'j', b'\x80') + b'\xe6\xbc',
    # A letter repeated for pages, spaces that a word tokenizer drops.
    TEXT[:9_000] + b'a' * 20_000 + TEXT[:20_001],
    b' ' * 20_000 + TEXT[:15_000] + b' ' * 20_000 + b'end' + b'\n' * 20_000,
], ids=['text', 'stray', 'letter', 'spaces'])
def test_pieces_are_the_whole(tokenizer, text):
  """A failure means that a long file trains on other ids than it holds."""
  ids, num_bytes = tokenizer.encode(text)
  found = list(pieces.encode(tokenizer, text, size=SIZE))
  assert len(found) > (1 if len(set(text)) > 20 else 0)
  np.testing.assert_array_equal(_joined(found)[0], ids)
  np.testing.assert_array_equal(_joined(found)[1], num_bytes)
  assert sum(p.num_bytes.sum() for p in found) == len(text)
  # From any piece on, they are the same.
  for index in (1, len(found) // 2):
    again = pieces.encode(tokenizer, text, found[index].begin, size=SIZE)
    for one, other in zip(again, found[index:], strict=True):
      np.testing.assert_array_equal(one.ids, other.ids)
      assert one.begin == other.begin


def test_what_cannot_be_cut_is_encoded_whole(tmp_path):
  """A failure means that a rule that counts from the start is broken by a cut.
  """
  tokenizer = tokenizers.Tokenizer(
      models.WordLevel({'<s>': 0, '?': 1, 'abcde': 2}, unk_token='?')
  )
  # Runs of seven characters, counted from the beginning.
  tokenizer.pre_tokenizer = pre.Split(
      tokenizers.Regex('.{7}'), behavior='isolated'
  )
  tokenizer = _save(tokenizer, tmp_path / 't.json')
  text = b'abcdefghijk' * 4_000
  found = list(pieces.encode(tokenizer, text, size=SIZE))
  np.testing.assert_array_equal(_joined(found)[0], tokenizer.encode(text).ids)


def test_pieces_of_bytes():
  """A failure means that bytes are lost where a long file is cut."""
  text = bytes(range(256)) * 300
  found = list(pieces.encode(ByteTokenizer(), text, size=SIZE))
  assert len(found) == -(-len(text) // SIZE)
  assert _joined(found)[0].tobytes() == text
  assert not list(pieces.encode(ByteTokenizer(), b''))


@pytest.mark.parametrize('with_tokenizer', [False, True])
def test_long_documents_resume_anywhere(tmp_path, monkeypatch, with_tokenizer):
  """A failure means that a run stopped inside a long file goes on elsewhere.

  Documents of many pieces among short ones, each against the row before.
  """
  monkeypatch.setattr(texts, 'PIECE', 3000)
  monkeypatch.setattr(pieces, '_CONTEXT', 256)
  monkeypatch.setattr(data.pipeline, '_WINDOW_TOKENS', 2**12)
  monkeypatch.setattr(
      rows.pieces, 'encode',
      lambda *args, encode=pieces.encode: encode(*args, size=3000),
  )
  fields = {}
  if with_tokenizer:
    _bpe(tmp_path / 't.json', pre.ByteLevel(),
         alphabet=pre.ByteLevel.alphabet())
    fields['tokenizer'] = str(tmp_path / 't.json')
  for i, size in enumerate((20_000, 100, 2999, 15_001, 1)):
    (tmp_path / f'{i}.txt').write_bytes(TEXT[i * 100 :][:size])
  config = DataConfig(
      source='files', path=str(tmp_path / '*.txt'), sequence_length=64,
      batch_size=4, align=16, holdout=0.01, **fields
  )
  states = assert_resumes(
      config, batches=150, places=(0, 1, 17, 70, 113, 148), following=2
  )
  assert any('"piece": 0' not in state for state in states)


def test_old_positions_go_on(tmp_path, monkeypatch):
  """A failure means that a checkpoint from before the pieces is worth nothing.
  """
  monkeypatch.setattr(data.pipeline, '_WINDOW_TOKENS', 2**10)
  (tmp_path / 'a.txt').write_bytes(TEXT)
  config = DataConfig(
      source='files', path=str(tmp_path / 'a.txt'), sequence_length=64,
      batch_size=4,
  )
  stream = data.train_batches(config)
  for _ in range(9):
    next(stream)
  state = json.loads(json.dumps(stream.get_state()))
  place = state['parent_window_start_state']
  assert place['piece'] == 0
  del place['piece']
  again = data.train_batches(config)
  again.set_state(state)
  np.testing.assert_array_equal(next(again)['tokens'], next(stream)['tokens'])


_MEASURE = '''
import re, sys
import jax, tokenizers
from hope_jax import data
from hope_jax.config import DataConfig
jax.devices()

def peak():
  # Not ru_maxrss, which begins with that of the process that started this one.
  status = open('/proc/self/status').read()
  return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])

before = peak()
for path, tokenizer, count in zip(*[iter(sys.argv[1:])] * 3):
  config = DataConfig(source='files', path=path, tokenizer=tokenizer)
  batches = data.train_batches(config)
  for _ in range(int(count)):
    next(batches)
  next(data.heldout_batches(config))
  print((peak() - before) / 1024)
'''


@pytest.mark.skipif(
    not pathlib.Path('/proc/self/status').exists(),
    reason='the peak of a process is read from Linux',
)
def test_reading_costs_little_memory(tmp_path):
  """A failure means that a file that fits the disk does not fit the memory.

  The peak of a process of its own, above what it takes with jax imported: more
  than an epoch of a file of 24 MB, of as many in few long records, and of 1 MB
  with a tokenizer. The limit is 200 MB and not twice the file more: what is
  read does not stay.
  """
  text = (TEXT * (3 * 2**23 // len(TEXT) + 1))[: 3 * 2**23]
  plain, lines, short = (tmp_path / n for n in ('a', 'a.jsonl', 'short'))
  plain.write_bytes(text)
  short.write_bytes(text[: 2**20])
  with lines.open('w') as file:
    for part in range(3):
      body = text[part * 2**23 : (part + 1) * 2**23].decode(errors='replace')
      file.write(json.dumps({'text': body}) + '\n')
  _bpe(tmp_path / 't.json', pre.ByteLevel(), alphabet=pre.ByteLevel.alphabet())
  runs = (
      plain, '', len(text) // 4096, lines, '', len(text) // 4096,
      short, tmp_path / 't.json', 100,
  )
  done = subprocess.run(
      [sys.executable, '-c', _MEASURE, *map(str, runs)],
      capture_output=True, text=True, check=False,
      cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr
  peaks = [float(line) for line in done.stdout.split()]
  assert len(peaks) == 3 and max(peaks) < 200, peaks


def test_a_text_is_read_where_it_is_sliced(tmp_path):
  """A failure means that a slice of a long file is of another place, or whole.
  """
  content = bytes(range(256)) * 2000
  (tmp_path / 'a').write_bytes(content)
  text = texts.FileText(str(tmp_path / 'a'), 1000, 400_000)
  for part in (slice(None), slice(5), slice(-7, None), slice(9, 300_000),
               slice(400_000, None), slice(20, 10)):
    assert text[part] == content[1000:400_000][part]
  assert text.part(10, 20)[2:] == content[1012:1020]
  made = []
  late = texts.LateText(lambda: made.append(1) or content)
  inner = late.part(10, 20)
  assert not made and len(late) == len(content) and late[3:5] == content[3:5]
  assert len(made) == 1 and inner[:] == content[10:20]
  # Of a file that was cut since, one line and no signal that kills.
  (tmp_path / 'a').write_bytes(content[:2000])
  with pytest.raises(data.pipeline.ConfigError, match='shorter') as caught:
    _ = text[500:2000]
  assert '\n' not in str(caught.value)
