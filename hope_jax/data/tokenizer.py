"""Text to token ids, and how many bytes of text each id stands for.

The bytes of each id are what makes losses of different vocabularies comparable:
bits per byte is the summed loss over the summed bytes. Both tokenizers give a
text's every byte to exactly one of its ids.
"""

import os
from typing import NamedTuple, Protocol

import numpy as np

from hope_jax.config import ConfigError, DataConfig

# Names under which vocabularies keep the token that begins a text.
_BEGIN = (
    '<s>', '<bos>', '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>',
    '[BOS]', '[CLS]',
)


class Encoded(NamedTuple):
  """A text as token ids."""

  ids: np.ndarray  # [T] unsigned or int32
  num_bytes: np.ndarray  # [T] int32, bytes of text that each id stands for


class Tokenizer(Protocol):
  """What the pipeline asks of a tokenizer."""

  vocab_size: int
  bos: int  # the id given to the model ahead of a document's first

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

  def encode(self, text: bytes) -> Encoded:
    """Returns the bytes as ids, without copying them."""
    ids = np.frombuffer(text, np.uint8)
    return Encoded(ids, np.broadcast_to(np.int32(1), ids.shape))

  def decode(self, ids: np.ndarray) -> bytes:
    """Returns the ids, each in [0, 256), as bytes."""
    return np.asarray(ids).astype(np.uint8).tobytes()


class FileTokenizer:
  """A tokenizer of the Hugging Face `tokenizers` library."""

  def __init__(self, path: str):
    """Reads the file.

    Args:
      path: a `tokenizer.json`.

    Raises:
      ConfigError: if there is no such file, it is not a tokenizer, or its
        vocabulary has nothing to begin a document with.
    """
    if not os.path.isfile(path):
      raise ConfigError(
          f'data.tokenizer: no file {path!r}; give a tokenizer.json of the'
          " tokenizers library, or '' for bytes"
      )
    try:
      # Imported here: bytes need no such library.
      import tokenizers
    except ImportError as error:
      raise ConfigError(
          f'data.tokenizer: {path!r} needs the tokenizers library ({error});'
          " install the extra hope_jax[datasets], or set '' for bytes"
      ) from error
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # The library raises bare Exception.
      reason = next(iter(str(error).splitlines()), 'unreadable')
      raise ConfigError(
          f'data.tokenizer: {path!r} is not a tokenizer ({reason}); give a'
          " tokenizer.json of the tokenizers library, or '' for bytes"
      ) from error
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    # Ids may have gaps; the largest decides how many logits a model needs.
    self.vocab_size = max(vocabulary.values(), default=-1) + 1
    # Failing a token made for it, begin as after a newline, as for bytes.
    newline = self._tokenizer.encode('\n', add_special_tokens=False).ids
    begin = [vocabulary[t] for t in _BEGIN if t in vocabulary] + newline[:1]
    if not begin:
      raise ConfigError(
          f'data.tokenizer: {path!r} has no token to begin a document with; add'
          f' one of {", ".join(_BEGIN)}'
      )
    self.bos = begin[0]

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
    encoding = self._tokenizer.encode(characters, add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    if not ids.size:
      return Encoded(ids, ids)
    begins = starts[np.array([begin for begin, _ in encoding.offsets])]
    begins[0] = 0
    edges = np.append(np.maximum.accumulate(begins), len(text))
    return Encoded(ids, np.diff(edges).astype(np.int32))

  def decode(self, ids: np.ndarray) -> bytes:
    """Returns the text of some ids in UTF-8; special tokens are left out."""
    return self._tokenizer.decode(np.asarray(ids).tolist()).encode()


def load_tokenizer(config: DataConfig) -> Tokenizer:
  """Returns the tokenizer that a configuration names: bytes, or a file's."""
  if not config.tokenizer:
    return ByteTokenizer()
  return FileTokenizer(config.tokenizer)


def vocab_size(config: DataConfig) -> int:
  """Returns how many ids a model of this data needs logits for."""
  return load_tokenizer(config).vocab_size
