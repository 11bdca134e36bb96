"""Text to token ids, and how many bytes of text each id stands for.

The bytes of each id are what makes losses of different vocabularies comparable:
bits per byte is the summed loss over the summed bytes. Both tokenizers give a
text's every byte to exactly one of its ids; the token that ends a document
stands for none.
"""

import codecs
from collections.abc import Iterable
import itertools
import os
import re
from typing import NamedTuple, Protocol

import numpy as np

from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import tokenizer_file
from hope_jax.data.texts import Text

# Names under which vocabularies keep the token that begins a text, and the one
# that ends it.
_BEGIN = (
    '<s>', '<bos>', '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>',
    '[BOS]', '[CLS]',
)
_END = (
    '</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>', '[EOS]', '[SEP]',
)
# Bytes of each document, and documents, that `check` reads.
_SAMPLE = 4096, 16


class Encoded(NamedTuple):
  """A text as token ids."""

  ids: np.ndarray  # [T] unsigned or int32
  num_bytes: np.ndarray  # [T] int32, bytes of text that each id stands for


class Tokenizer(Protocol):
  """What the pipeline asks of a tokenizer."""

  vocab_size: int
  bos: int  # the id given to the model ahead of a document's first
  eos: int | None  # the id that ends a document; None: there is none
  fingerprint: str  # what tells it from other tokenizers

  def encode(self, text: bytes) -> Encoded:
    """Returns the ids of a text and the bytes that each stands for."""
    ...

  def decode(self, ids: np.ndarray) -> bytes:
    """Returns the text of some ids."""
    ...


class ByteTokenizer:
  """A byte is its own id; a document begins as if after a newline."""

  vocab_size = 256
  bos = 10
  eos: int | None = None
  fingerprint = 'bytes'

  def encode(self, text: bytes) -> Encoded:
    """Returns the bytes as ids, without copying them."""
    ids = np.frombuffer(text, np.uint8)
    return Encoded(ids, np.broadcast_to(np.int32(1), ids.shape))

  def decode(self, ids: np.ndarray) -> bytes:
    """Returns the ids, each in [0, 256), as bytes."""
    return np.asarray(ids).astype(np.uint8).tobytes()


class FileTokenizer:
  """A tokenizer of the Hugging Face `tokenizers` library."""

  def __init__(self, path: str, control_tokens: str = 'text'):
    """Reads the file.

    Args:
      path: a `tokenizer.json`.
      control_tokens: 'text' or 'parse', see `DataConfig`.

    Raises:
      ConfigError: if there is no such file, it is not a tokenizer, its
        vocabulary has nothing to begin a document with, or some text stops it.
    """
    opened = tokenizer_file.open_file(path, control_tokens)
    self.path = path
    self.opened = opened
    self.fingerprint = f'{control_tokens} {opened.digest}'
    self._tokenizer = opened.tokenizer
    vocabulary = opened.vocabulary
    # Ids may have gaps; the largest decides how many logits a model needs.
    self.vocab_size = max(vocabulary.values(), default=-1) + 1
    # Failing a token made for it, begin as after a newline, as for bytes.
    begin = [vocabulary[t] for t in _BEGIN if t in vocabulary]
    if not begin:
      with tokenizer_file.guarded(path, 'cannot read a newline'):
        begin = self._tokenizer.encode('\n', add_special_tokens=False).ids
    if not begin:
      raise ConfigError(
          f'data.tokenizer: {path!r} has no token to begin a document with; add'
          f' one of {", ".join(_BEGIN)}'
      )
    self.bos = begin[0]
    self.eos = next((vocabulary[t] for t in _END if t in vocabulary), None)
    tokenizer_file.require_all_text(path, opened)
    # Control tokens that a text holds, where it must not hold any.
    as_text = control_tokens == 'text'
    self._controls = np.array(sorted(opened.controls if as_text else ()), int)
    kinds = _kinds(opened.spec.get('decoder'))
    self._byte_level = bool(kinds) and kinds <= {'ByteLevel', 'Fuse'}
    self._added = {
        token['id']: token for token in opened.spec.get('added_tokens') or []
    }
    # Ids of single bytes, for what the vocabulary has no other token for.
    self._bytes = {}
    if 'ByteFallback' in kinds:
      self._bytes = {
          i: bytes.fromhex(token[3:5])
          for token, i in vocabulary.items()
          if re.fullmatch('<0x[0-9A-F]{2}>', token)
      }

  def encode(self, text: bytes) -> Encoded:
    """Returns the ids of a text, of any bytes.

    A byte that is not UTF-8 is read as U+FFFD and still counts as one byte. The
    bytes of an id reach to where the next id's text begins, so that what a
    tokenizer drops (spaces, for some) counts too and the sum is exact.

    Args:
      text: the text, in UTF-8.

    Returns:
      The ids and their bytes, [T] int32 each.
    """
    # One character each for a code point and for a byte that is none: offsets
    # below count characters, and every character knows its bytes.
    characters = text.decode('utf-8', 'surrogateescape')
    codes = np.frombuffer(
        characters.encode('utf-32-le', 'surrogatepass'), np.uint32
    )
    stray = (codes >= 0xDC80) & (codes <= 0xDCFF)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    starts = np.concatenate([[0], np.cumsum(np.where(stray, 1, widths))])
    if stray.any():
      characters = characters.translate(
          {int(c): 0xFFFD for c in np.unique(codes[stray])}
      )
    with tokenizer_file.guarded(self.path, 'cannot read a text'):
      encoding = self._tokenizer.encode(characters, add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    if not ids.size:
      return Encoded(ids, ids)
    controls = np.isin(ids, self._controls)
    if controls.any():
      ids = self._without_controls(ids, controls)
    begins = starts[np.array([begin for begin, _ in encoding.offsets])]
    begins[0] = 0
    edges = np.append(np.maximum.accumulate(begins), len(text))
    return Encoded(ids, np.diff(edges).astype(np.int32))

  def decode(self, ids: np.ndarray) -> bytes:
    """Returns the text of some ids; control tokens are left out.

    To the byte where tokens stand for bytes, also those of half a character;
    else in UTF-8.
    """
    ids = np.asarray(ids).tolist()
    if self._byte_level:
      return b''.join(map(self._of_byte_level, ids))
    parts, before = [], []
    for single, run in itertools.groupby(ids, self._bytes.__contains__):
      run = list(run)
      if single:
        parts.append(b''.join(self._bytes[i] for i in run))
      else:
        parts.append(self._words(run, before))
      before = run[-1:]
    return b''.join(parts)

  def _words(self, ids: list[int], before: list[int]) -> bytes:
    """Returns the text of ids as it follows the id before, if there is one."""
    with tokenizer_file.guarded(self.path, 'cannot write a text'):
      head = self._tokenizer.decode(before)
      whole = self._tokenizer.decode(before + ids)
      if not whole.startswith(head):
        head, whole = '', self._tokenizer.decode(ids)
    return whole[len(head) :].encode()

  def _of_byte_level(self, index: int) -> bytes:
    """Returns the bytes of an id, each written as a character of its own.

    The library would make them a str, with U+FFFD for half a character.
    """
    added = self._added.get(index)
    if added:
      return b'' if added['special'] else added['content'].encode()
    token = self._tokenizer.id_to_token(index) or ''
    try:
      return bytes(_BYTE_OF[character] for character in token)
    except KeyError:  # As the library has it.
      return token.encode()

  def _without_controls(
      self, ids: np.ndarray, controls: np.ndarray
  ) -> np.ndarray:
    """Reads control tokens that a text spells, and only they can, as unknown.

    A vocabulary of whole words has no other way to write '</s>'.
    """
    if self.opened.unknown is None:
      token = self._tokenizer.id_to_token(int(ids[controls][0]))
      raise ConfigError(
          f'data.tokenizer: {self.path!r} reads {token!r} in a text as a'
          ' control token and has no token for the unknown; set'
          " data.control_tokens='parse', or leave it out of the text"
      )
    return np.where(controls, self.opened.unknown, ids).astype(np.int32)


def _kinds(part: dict | None) -> set[str]:
  """Returns what a part of a tokenizer is of, without the sequences."""
  if not part:
    return set()
  if part['type'] != 'Sequence':
    return {part['type']}
  (inner,) = (value for value in part.values() if isinstance(value, list))
  return set().union(*map(_kinds, inner))


def _byte_of() -> dict[str, int]:
  """The alphabet of byte-level vocabularies, character -> byte.

  Bytes of printable characters in Latin-1 are those characters, the others the
  characters from U+0100 on, in order.
  """
  same = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in same]
  return {chr(b): b for b in same} | {
      chr(256 + i): b for i, b in enumerate(others)
  }


_BYTE_OF = _byte_of()


def load_tokenizer(config: DataConfig) -> Tokenizer:
  """Returns the tokenizer that a configuration names: bytes, or a file's."""
  if not config.tokenizer:
    return ByteTokenizer()
  return FileTokenizer(config.tokenizer, config.control_tokens)


def vocab_size(config: DataConfig) -> int:
  """Returns how many ids a model of this data needs logits for."""
  return load_tokenizer(config).vocab_size


def encode_document(tokenizer: Tokenizer, text: bytes, *, end: bool) -> Encoded:
  """Returns the ids of a whole document.

  Args:
    tokenizer: its tokenizer.
    text: the text.
    end: the document ends with `tokenizer.eos`, where there is one.

  Returns:
    The ids and their bytes; the end stands for none.
  """
  encoded = tokenizer.encode(text)
  return ended(tokenizer, *encoded) if end else encoded


def ended(
    tokenizer: Tokenizer, ids: np.ndarray, num_bytes: np.ndarray
) -> Encoded:
  """Returns the ids, or last ids, of a document with its end behind them."""
  if tokenizer.eos is None or not len(ids):
    return Encoded(ids, num_bytes)
  return Encoded(
      np.append(ids, tokenizer.eos).astype(np.int32),
      np.append(num_bytes, 0).astype(np.int32),
  )


def check(tokenizer: Tokenizer, documents: Iterable[Text]) -> None:
  """Says, once, what a tokenizer loses of a user's own text.

  Args:
    tokenizer: its tokenizer.
    documents: texts, of which the beginnings of the first are read.
  """
  if isinstance(tokenizer, ByteTokenizer):
    return  # Its ids are the text.
  size, count = _SAMPLE
  for document in itertools.islice(documents, count):
    text = document[:size]
    # What is cut is cut between characters.
    _, whole = codecs.utf_8_decode(
        text, 'surrogateescape', len(document) <= size
    )
    text = text[:whole]
    back = tokenizer.decode(tokenizer.encode(text).ids)
    if back != text:
      tokenizer_file.say(
          f'data.tokenizer: {_difference(tokenizer, text, back)}',
          about=('loses text', tokenizer.fingerprint),
      )
      return


def _difference(tokenizer: Tokenizer, text: bytes, back: bytes) -> str:
  """Returns a line that says where a text and what is left of it part."""
  at = len(os.path.commonprefix([text, back]))
  some = slice(max(0, at - 8), at + 16)
  spec = tokenizer.opened.spec if isinstance(tokenizer, FileTokenizer) else {}
  why = []
  for part in ('normalizer', 'pre_tokenizer'):
    if spec.get(part):
      why.append(f'{part} {", ".join(sorted(_kinds(spec[part])))}')
  try:
    text.decode()
  except UnicodeDecodeError:
    why.insert(0, 'the text is no UTF-8')
  reasons = f' ({"; ".join(why)})' if why else ''
  name = getattr(tokenizer, 'path', 'the tokenizer')
  return (
      f'{name!r} does not give every text back: {text[some]!r} at byte {at}'
      f' comes back as {back[some]!r}{reasons}; losses are of what is left,'
      ' bits per byte count all bytes'
  )
