"""Bytes and `tokenizers` files: round trips, and whose bytes are whose."""

import numpy as np
import pytest

from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import vocab_size
from hope_jax.data.tokenizer import ByteTokenizer, FileTokenizer

tokenizers = pytest.importorskip(
    'tokenizers', reason='the tokenizers library is not installed'
)

TEXTS = [
    b'def f(x):\n  return x + 1\n',
    '  žluťoučký kůň — 漢字 🦙🦙\n'.encode(),
    b'\xff\xfe broken \xe6\xbc utf-8 \x80',
    bytes(range(256)),
    b' ',
]


@pytest.fixture(scope='module')
def bpe_path(tmp_path_factory):
  """A byte-level BPE tokenizer of 300 entries, trained on a few lines."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=['<s>'],
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  tokenizer.train_from_iterator([t.decode('utf-8', 'replace') for t in TEXTS],
                                trainer)
  path = str(tmp_path_factory.mktemp('bpe') / 'tokenizer.json')
  tokenizer.save(path)
  return path


def _words(tmp_path, vocabulary):
  """Saves a tokenizer of whole words, which drops the spaces between them."""
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(vocabulary, unk_token='?')
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  path = str(tmp_path / 'words.json')
  tokenizer.save(path)
  return path


@pytest.mark.parametrize('text', [*TEXTS, b''])
def test_bytes_round_trip(text):
  """A failure means that byte text is not what the model was trained on."""
  tokenizer = ByteTokenizer()
  ids, num_bytes = tokenizer.encode(text)
  assert ids.tolist() == list(text)
  assert num_bytes.tolist() == [1] * len(text)
  assert tokenizer.decode(ids) == text
  assert vocab_size(DataConfig()) == 256


@pytest.mark.parametrize('text', TEXTS)
def test_bpe_round_trip_and_bytes(bpe_path, text):
  """A failure means that bits per byte divide by something but the bytes."""
  tokenizer = FileTokenizer(bpe_path)
  ids, num_bytes = tokenizer.encode(text)
  assert ids.shape == num_bytes.shape
  assert num_bytes.min() >= 0
  assert num_bytes.sum() == len(text)
  readable = text.decode('utf-8', 'replace')
  if '\ufffd' not in readable:
    assert tokenizer.decode(ids) == text


def test_bpe_bytes_of_each_id(bpe_path):
  """A failure means that bytes are given to the wrong ids.

  In a byte-level vocabulary each character of an entry is one byte, which tells
  how many bytes an entry is without any offsets.
  """
  tokenizer = FileTokenizer(bpe_path)
  library = tokenizers.Tokenizer.from_file(bpe_path)
  ids, num_bytes = tokenizer.encode(TEXTS[0])
  assert num_bytes.tolist() == [len(library.id_to_token(i)) for i in ids]
  assert max(num_bytes) > 1


def test_begin_and_vocabulary(bpe_path, tmp_path):
  """A failure means a model without logits for some id, or a wrong start."""
  assert vocab_size(DataConfig(tokenizer=bpe_path)) == 300
  assert FileTokenizer(bpe_path).bos == 0
  # Ids with gaps: as many logits as the largest asks for.
  sparse = FileTokenizer(_words(tmp_path, {'a': 3, '?': 7, '[CLS]': 5}))
  assert (sparse.vocab_size, sparse.bos) == (8, 5)


def test_dropped_spaces_still_count(tmp_path):
  """A failure means that a tokenizer gains bits per byte by dropping text."""
  tokenizer = FileTokenizer(_words(tmp_path, {'a': 0, '?': 1, '<s>': 2}))
  ids, num_bytes = tokenizer.encode('  a  b\xe9b a '.encode())
  assert ids.tolist() == [0, 1, 0]
  assert num_bytes.tolist() == [5, 5, 2]
  assert tokenizer.encode(b'  ').ids.shape == (0,)


def test_bad_files_say_so(tmp_path):
  """A failure means a traceback, or a wrong run, for a mistyped tokenizer."""
  missing = str(tmp_path / 'none.json')
  broken = tmp_path / 'broken.json'
  broken.write_text('{"a": ')
  cases = {
      missing: 'no file',
      str(broken): 'not a tokenizer',
      _words(tmp_path, {'a': 0}): 'no token to begin',
  }
  for path, what in cases.items():
    with pytest.raises(ConfigError, match=what) as caught:
      FileTokenizer(path)
    message = str(caught.value)
    assert '\n' not in message and repr(path) in message
    assert message.startswith('data.tokenizer')


def test_stray_bytes_reach_the_model_as_replacements(tmp_path):
  """A failure means that invalid UTF-8 stops a run, or shifts the bytes."""
  tokenizer = FileTokenizer(
      _words(tmp_path, {'a': 0, '\ufffd': 1, '?': 2, '<s>': 3})
  )
  ids, num_bytes = tokenizer.encode(b'a \xff a')
  np.testing.assert_array_equal(ids, [0, 1, 0])
  np.testing.assert_array_equal(num_bytes, [2, 2, 1])
