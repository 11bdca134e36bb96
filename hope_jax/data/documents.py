"""Documents by their number, whatever they are kept in.

A source gives random access to named documents: `len(source)`, `source[i]`, a
`(name, text)` pair with the text in bytes (a long one is read as it is sliced,
see `texts`), and `source.name(i)`, the name alone, which costs no reading. A
document's name says nothing of the machine it is read on, because it decides
whether the document is held out.
"""

from collections.abc import Sequence
import functools
import hashlib
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from hope_jax.config import ConfigError
from hope_jax.data import texts

# Numbers that are hashed at once: what fits a cache.
_AT_ONCE = 2**16


class Source(Protocol):
  """Random access to named documents."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    ...

  def name(self, index: int) -> str:
    """Returns the name of a document without reading it."""
    ...


def ranks(source: Source) -> np.ndarray:
  """Returns a number in [0, 1) for each document: [N] float64, a hash.

  `source.ranks()`, where there is one, and else `name_ranks`.
  """
  if hasattr(source, 'ranks'):
    return source.ranks()  # pyright: ignore[reportAttributeAccessIssue]
  return name_ranks([source.name(index) for index in range(len(source))])


def name_ranks(names: Sequence[str]) -> np.ndarray:
  """Returns a number in [0, 1) for each name, of its SHA-256."""
  return np.array([_digest(name) for name in names], float) / 2**48


def numbered_ranks(
    name: str, numbers: np.ndarray, first: int = 0
) -> np.ndarray:
  """Returns a number in [0, 1) for each of the documents 'NAME:NUMBER'.

  SplitMix64 (Steele, Lea and Flood, 2014) of the number, begun at the SHA-256
  of the name: 20 ns a document, where a SHA-256 of each would be 1.6 us, and a
  minute of a gigabyte of short lines.

  Args:
    name: what all have in common.
    numbers: [N] integers, none below 0.
    first: the number of what `numbers` calls 0.
  """
  found = np.empty(len(numbers))
  start = np.uint64(_digest(name))
  for at in range(0, len(numbers), _AT_ONCE):
    mixed = numbers[at : at + _AT_ONCE].astype(np.uint64) + np.uint64(first)
    mixed = start + mixed * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
      mixed ^= mixed >> np.uint64(shift)
      mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    # A float64 has 53 bits.
    found[at : at + _AT_ONCE] = (mixed >> np.uint64(11)) / 2**53
  return found


def _digest(name: str) -> int:
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()
  return int.from_bytes(digest[:6], 'big')


class Files:
  """Documents that are files, read at each access (the system caches them)."""

  def __init__(self, paths: Sequence[str], *, root: str):
    """Keeps the paths, in the order given; names are relative to `root`."""
    self._paths = tuple(paths)
    self._root = root

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    path = self._paths[index]
    text = texts.FileText(path, 0, texts.size_of(path))
    return self.name(index), texts.short_or_late(text)

  def name(self, index: int) -> str:
    """Returns the path relative to the root, with forward slashes."""
    return name_of(self._paths[index], self._root)


def name_of(path: str, root: str) -> str:
  """Returns a file's name: its path from a folder on, on every machine."""
  return pathlib.PurePath(os.path.relpath(path, root)).as_posix()


class Records:
  """Documents that are records of a random-access reader."""

  def __init__(self, reader: Any, *, label: str, field: str | None = None):
    """Wraps a reader.

    Args:
      reader: anything with `len` and `[i]`, whose records are bytes or str, or
        mappings that hold one of the two.
      label: what a record is called in names; it is followed by its index.
      field: the key of the text in a record that is a mapping; None where a
        record is the text.

    Raises:
      ConfigError: if the records have no such field, or it holds no text.
    """
    self._reader = reader
    self._label = label
    self._field = field
    if len(reader):
      self[0]

  def __len__(self) -> int:
    return len(self._reader)

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    text = self._text(index)
    if len(text) > texts.PIECE:
      # Not kept: the pipeline has many documents in hand, and reads one.
      text = texts.LateText(functools.partial(self._text, index))
    return self.name(index), text

  def _text(self, index: int) -> bytes:
    record = self._reader[index]
    if self._field is not None:
      if self._field not in record:
        raise ConfigError(
            f'data.text_field: no field {self._field!r} in {self._label}; its'
            f' records have: {", ".join(sorted(record))}'
        )
      record = record[self._field]
    if isinstance(record, str):
      record = record.encode('utf-8', 'surrogatepass')
    if not isinstance(record, bytes):
      raise ConfigError(
          f'data.text_field: {self._field!r} in {self._label} holds'
          f' {type(record).__name__}; give a field of text'
      )
    return record

  def name(self, index: int) -> str:
    """Returns the label and the index."""
    return f'{self._label}:{index}'

  def ranks(self) -> np.ndarray:
    """Returns those of the indices, see `ranks`."""
    return numbered_ranks(self._label, np.arange(len(self)))


class Joined:
  """The documents of several sources."""

  def __init__(self, sources: Sequence[Source]):
    """Joins them in the order given."""
    self._sources = tuple(sources)
    self._edges = np.cumsum([0, *map(len, self._sources)])

  def __len__(self) -> int:
    return int(self._edges[-1])

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    source, index = self._find(index)
    return source[index]

  def name(self, index: int) -> str:
    """Returns the name that the document has in its own source."""
    source, index = self._find(index)
    return source.name(index)

  def ranks(self) -> np.ndarray:
    """Returns those of all sources, see `ranks`."""
    return np.concatenate([ranks(source) for source in self._sources])

  def _find(self, index: int) -> tuple[Source, int]:
    index = range(len(self))[index]
    of = int(np.searchsorted(self._edges, index, side='right')) - 1
    return self._sources[of], index - int(self._edges[of])
