"""Documents by their number, whatever they are kept in.

A source gives random access to named documents: `len(source)`, `source[i]`, a
`(name, text)` pair with the text in bytes (a long one is read as it is sliced,
see `texts`), and `source.name(i)`, the name alone, which costs no reading. A
document's name says nothing of the machine it is read on, because it decides
whether the document is held out.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from hope_jax.config import ConfigError
from hope_jax.data import texts


class Source(Protocol):
  """Random access to named documents."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    ...

  def name(self, index: int) -> str:
    """Returns the name of a document without reading it."""
    ...


def names_of(source: Source) -> Iterator[str]:
  """Yields the names of all documents; `source.names()`, where there is one."""
  if hasattr(source, 'names'):
    return source.names()  # pyright: ignore[reportAttributeAccessIssue]
  return map(source.name, range(len(source)))


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

  def names(self) -> Iterator[str]:
    """Yields the names of all documents."""
    return itertools.chain.from_iterable(map(names_of, self._sources))

  def _find(self, index: int) -> tuple[Source, int]:
    index = range(len(self))[index]
    of = int(np.searchsorted(self._edges, index, side='right')) - 1
    return self._sources[of], index - int(self._edges[of])
