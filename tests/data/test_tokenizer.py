"""Bytes and `tokenizers` files: round trips, and whose bytes are whose."""

import warnings

import numpy as np
import pytest

from hope_jax import data
from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import vocab_size
from hope_jax.data.tokenizer import (
  ByteTokenizer,
  FileTokenizer,
  check,
  encode_document,
  load_tokenizer,
)

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


def test_half_a_character_is_bytes(bpe_path):
  """A failure means that a text that is written in pieces has U+FFFD in it.

  The llama is four tokens of a byte each here.
  """
  tokenizer = FileTokenizer(bpe_path)
  ids = tokenizer.encode('\U0001f98a'.encode()).ids
  assert len(ids) > 1
  parts = [tokenizer.decode(ids[i : i + 1]) for i in range(len(ids))]
  assert b''.join(parts) == '\U0001f98a'.encode()
  assert all(parts) and tokenizer.decode(ids[:0]) == b''


@pytest.fixture(scope='module')
def llama_path(tmp_path_factory):
  """A vocabulary as of Llama 2: blanks as '▁', and a token for each byte."""
  words = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
  words += ['▁', 'a', 'b', '▁a', '<', '/', 's', '>', '/s']
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.BPE(
          {word: i for i, word in enumerate(words)}, [('▁', 'a'), ('/', 's')],
          unk_token='<unk>', byte_fallback=True, fuse_unk=True,
      )
  )
  tokenizer.add_special_tokens(words[:3])
  normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
  tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  tokenizer.decoder = decoders.Sequence([
      decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
  ])
  path = str(tmp_path_factory.mktemp('llama') / 'tokenizer.json')
  tokenizer.save(path)
  return path


@pytest.fixture(scope='module')
def pieces_path(tmp_path_factory):
  """A Unigram vocabulary, which has the control tokens among its pieces."""
  pieces = [('<unk>', 0.0), ('<s>', 0.0), ('</s>', 0.0), ('▁', -2.0)]
  pieces += [(c, -3.0) for c in '</s>unkab']
  tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.decoder = tokenizers.decoders.Metaspace()
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
  path = str(tmp_path_factory.mktemp('pieces') / 'tokenizer.json')
  tokenizer.save(path)
  return path


@pytest.mark.parametrize('kind', ['bpe', 'llama', 'pieces'])
def test_control_tokens_in_a_text_are_text(request, kind):
  """A failure means that a text that spells '</s>' loses it, or ends there.

  `control_tokens='parse'` reads them as what they are, and then they are gone.
  """
  path = request.getfixturevalue(f'{kind}_path')
  config = DataConfig(tokenizer=path)
  special = {0} if kind == 'bpe' else {1, 2}
  for text in (b'a</s>b', b'<s></s><s>', b' <s> a', b'<unk>a <'):
    ids, num_bytes = load_tokenizer(config).encode(text)
    assert load_tokenizer(config).decode(ids) == text.removeprefix(
        b' ' if kind == 'pieces' else b''  # Metaspace cannot tell it.
    )
    assert not special & set(ids.tolist())
    assert num_bytes.sum() == len(text)
  parsing = load_tokenizer(DataConfig(tokenizer=path, control_tokens='parse'))
  ids = parsing.encode(b'<s>a').ids
  assert special & set(ids.tolist())
  assert parsing.decode(ids).strip() == b'a'
  assert parsing.fingerprint != load_tokenizer(config).fingerprint


def test_words_that_are_control_tokens(tmp_path):
  """A failure means that a text can end a document, or stop a run."""
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel({'a': 0, '?': 1, '</s>': 2}, unk_token='?')
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(['</s>', '<s>'])
  path = str(tmp_path / 'words.json')
  tokenizer.save(path)
  assert FileTokenizer(path).encode(b'a </s> a').ids.tolist() == [0, 1, 0]
  parsed = FileTokenizer(path, 'parse').encode(b'a </s> a').ids
  assert parsed.tolist() == [0, 2, 0]


def test_words_follow_the_word_before(llama_path):
  """A failure means that blanks vanish where a text is written in pieces."""
  tokenizer = FileTokenizer(llama_path)
  text = ' a a \U0001f999a \u6f22'.encode()
  ids = tokenizer.encode(text).ids
  assert tokenizer.decode(ids) == text
  whole = b''
  for i in range(1, len(ids) + 1):  # As a session does.
    more = tokenizer.decode(ids[max(0, i - 2) : i])
    whole += more[len(tokenizer.decode(ids[max(0, i - 2) : i - 1])) :]
  assert whole == text


def test_documents_end(bpe_path, llama_path, tmp_path):
  """A failure means that a model is never taught to stop."""
  tokenizer = FileTokenizer(llama_path)
  assert (tokenizer.bos, tokenizer.eos) == (1, 2)
  ids, num_bytes = encode_document(tokenizer, b'a a', end=True)
  assert (ids[-1], num_bytes[-1], num_bytes.sum()) == (2, 0, 3)
  assert len(ids) == len(num_bytes) == len(tokenizer.encode(b'a a').ids) + 1
  assert 2 not in encode_document(tokenizer, b'a a', end=False).ids
  assert not len(encode_document(tokenizer, b'', end=True).ids)
  for without in (ByteTokenizer(), FileTokenizer(bpe_path)):
    assert without.eos is None
    ids, _ = encode_document(without, b'a a', end=True)
    assert without.decode(ids) == b'a a'
  for i in range(20):
    (tmp_path / f'{i}.txt').write_text('a b' * (1 + i))
  config = DataConfig(
      tokenizer=llama_path, source='files', path=f'{tmp_path}/*.txt',
      sequence_length=16, batch_size=4, align=1,
  )
  for ends, options in ((True, {}), (False, {'end_of_document': False})):
    config = DataConfig(**{**vars(config), **options})
    for batches in (data.train_batches(config), data.heldout_batches(config)):
      batch = next(iter(batches))
      end = (batch['targets'] == 2) & (batch['mask'] > 0)
      assert end.any() == ends
      assert not batch['target_bytes'][end].any()


@pytest.mark.parametrize('source', ['bpe', 'llama', 'pieces'])
def test_what_shortens_a_text_is_switched_off(request, tmp_path, source):
  """A failure means that text is lost: 16 ids stood for 2,900 bytes."""
  path = request.getfixturevalue(f'{source}_path')
  library = tokenizers.Tokenizer.from_file(path)
  library.enable_truncation(16)
  library.enable_padding(length=40)
  library.save(saved := str(tmp_path / 'saved.json'))
  with pytest.warns(UserWarning) as caught:
    tokenizer = FileTokenizer(saved)
  said = ' '.join(str(w.message) for w in caught)
  assert 'truncation' in said and 'padding' in said and repr(saved) in said
  for text in (b'a b' * 300, b'a'):
    for found, expected in zip(
        tokenizer.encode(text), FileTokenizer(path).encode(text)
    ):
      np.testing.assert_array_equal(found, expected)
  with warnings.catch_warnings():  # Once is enough.
    warnings.simplefilter('error')
    FileTokenizer(saved)


def test_dropout_is_switched_off(bpe_path, tmp_path):
  """A failure means that one text has other ids each time it is read."""
  library = tokenizers.Tokenizer.from_file(bpe_path)
  library.model.dropout = 0.5
  library.save(saved := str(tmp_path / 'saved.json'))
  with pytest.warns(UserWarning, match='dropout of 0.5'):
    tokenizer = FileTokenizer(saved)
  expected = FileTokenizer(bpe_path).encode(TEXTS[0] * 9).ids
  for _ in range(5):
    np.testing.assert_array_equal(tokenizer.encode(TEXTS[0] * 9).ids, expected)


def _normalized(path, folder, *names):
  library = tokenizers.Tokenizer.from_file(path)
  library.normalizer = tokenizers.normalizers.Sequence(
      [getattr(tokenizers.normalizers, name)() for name in names]
  )
  library.save(saved := str(folder / f'{names[0]}.json'))
  return saved


@pytest.mark.parametrize(('name', 'text', 'shown'), [
    ('Lowercase', b'def The', "b'def The' at byte 4 comes back as b'def the'"),
    ('NFKC', '\ufb01x'.encode(), "as b'fix'"),
    ('Strip', b'  a ', "as b'a'"),
    ('StripAccents', 'e\u0301'.encode(), "as b'e'"),
])
def test_what_is_lost_is_said(bpe_path, tmp_path, name, text, shown):
  """A failure means that a model is trained on another text, unsaid."""
  tokenizer = FileTokenizer(_normalized(bpe_path, tmp_path, name))
  with pytest.warns(UserWarning) as caught:
    check(tokenizer, [b'fine', text])
    check(tokenizer, [text])
  (line,) = (str(w.message) for w in caught)
  assert shown in line and name in line and '\n' not in line
  # Bits per byte are over the bytes as they are.
  assert tokenizer.encode(text).num_bytes.sum() == len(text)


def test_nothing_is_said_where_nothing_is_lost(bpe_path):
  """A failure means a false alarm: the sample was cut inside a character."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for tokenizer in (FileTokenizer(bpe_path), ByteTokenizer()):
      check(tokenizer, ['a\u6f22'.encode() * 3000, 'é'.encode(), b''])
    check(ByteTokenizer(), [b'caf\xe9', bytes(range(256))])
  with pytest.warns(UserWarning, match='no UTF-8'):
    check(FileTokenizer(bpe_path), [b'caf\xe9'])


def test_training_says_what_is_lost(bpe_path, tmp_path):
  """A failure means that the check exists and nobody calls it."""
  for i in range(9):
    (tmp_path / f'{i}.txt').write_text('Upper and lower ' * 9)
  config = DataConfig(
      tokenizer=_normalized(bpe_path, tmp_path, 'Lowercase', 'NFC'),
      source='files', path=f'{tmp_path}/*.txt', sequence_length=16,
  )
  with pytest.warns(UserWarning, match="b'upper and"):
    data.train_batches(config)
