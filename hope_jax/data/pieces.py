"""A long document encoded a piece at a time, to the ids of the whole.

What a tokenizer makes of a text depends on what is around it: a word must not
be cut, spaces join what follows, some put a mark before a text. So no rule says
where a text may be cut; it is tried. A piece is encoded with text on both sides
of it, and so is the next, which overlaps it. Where both give the same ids all
around a place, though one knows nothing of what comes before and the other
nothing of what follows, the text is cut there. Where they do not (one letter
repeated for pages, or a rule that counts from the beginning), the piece grows
until they do, at most to the whole document, which is always right.
"""

from collections.abc import Iterator
from typing import NamedTuple
import warnings

import numpy as np

from hope_jax.data.texts import PIECE, Text
from hope_jax.data.tokenizer import ByteTokenizer, Tokenizer

# Bytes around a piece that are encoded with it. Two encodings must agree on
# half of it on both sides of a cut, and are half of it away from their ends.
_CONTEXT = 2**12


class Piece(NamedTuple):
  """Some ids of a document, one at least."""

  ids: np.ndarray  # [T] unsigned or int32
  num_bytes: np.ndarray  # [T] int32, bytes of text that each id stands for
  ends: bool  # the document ends with it
  begin: int  # bytes of the document before it


class _Window(NamedTuple):
  """A piece with its surroundings, encoded."""

  ids: np.ndarray
  num_bytes: np.ndarray
  begins: np.ndarray  # bytes of the document before each id
  ends: bool  # it reaches to the document's end

  def part(self, begin: int, end: int | None) -> slice:
    """Returns the ids whose text begins in begin .. end (None: the last)."""
    first = np.searchsorted(self.begins, begin)
    last = None if end is None else np.searchsorted(self.begins, end)
    return slice(first, last)


def encode(
    tokenizer: Tokenizer, text: Text, begin: int = 0, *, size: int = PIECE
) -> Iterator[Piece]:
  """Yields the pieces of a document; joined, they are its `encode`.

  Args:
    tokenizer: bytes, or of a file.
    text: the document.
    begin: 0, or where an earlier call said that a piece begins: the pieces
      from there on.
    size: bytes of a piece, about.
  """
  if isinstance(tokenizer, ByteTokenizer):
    for at in range(begin, len(text), size):
      encoded = tokenizer.encode(text[at : at + size])
      yield Piece(*encoded, ends=at + size >= len(text), begin=at)
    return
  length, window = size, _window(tokenizer, text, begin, size)
  while not window.ends:
    cut = _last(window, begin, begin + length)
    if cut is not None:
      following = _window(tokenizer, text, cut, size)
      if _agree(window, following, cut):
        yield _piece(window, begin, cut)
        begin, length, window = cut, size, following
        continue
    length *= 2
    if length == 64 * size:
      warnings.warn(
          f'data.tokenizer: {length} bytes of a text have no place where they'
          ' can be cut; they are encoded at once, which takes memory',
          stacklevel=2,
      )
    window = _window(tokenizer, text, begin, length)
  piece = _piece(window, begin, None)
  if len(piece.ids):
    yield piece


def _window(
    tokenizer: Tokenizer, text: Text, begin: int, size: int
) -> _Window:
  left, right = max(0, begin - _CONTEXT), begin + size + _CONTEXT
  content = text[left:right]
  if left:
    # Not in the middle of a character: of UTF-8's bytes these go on with one.
    whole = next((i for i in range(4) if content[i] & 0xC0 != 0x80), 0)
    content, left = content[whole:], left + whole
  ids, num_bytes = tokenizer.encode(content)
  begins = left + np.cumsum(num_bytes, dtype=np.int64) - num_bytes
  return _Window(ids, num_bytes, begins, right >= len(text))


def _last(window: _Window, begin: int, end: int) -> int | None:
  """Returns where the last id of begin .. end begins; None: there is none."""
  found = window.begins[window.part(begin + 1, end + 1)]
  return int(found[-1]) if len(found) else None


def _agree(one: _Window, other: _Window, cut: int) -> bool:
  around = cut - _CONTEXT // 2, cut + _CONTEXT // 2
  a, b = one.part(*around), other.part(*around)
  return np.array_equal(one.ids[a], other.ids[b]) and np.array_equal(
      one.begins[a], other.begins[b]
  )


def _piece(window: _Window, begin: int, end: int | None) -> Piece:
  part = window.part(begin, end)
  return Piece(
      window.ids[part], window.num_bytes[part], ends=end is None, begin=begin
  )
