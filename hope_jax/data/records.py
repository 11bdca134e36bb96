"""Files of many documents: JSON Lines and Parquet; and compressed files.

What can be read from any place (lines of JSON) is read where it is, by an index
of its lines. What cannot (Parquet, compressed files) is unpacked once, into a
temporary file without a name, which goes with the process. Either way a
document is read when its turn comes, and an opened file costs its index, 24
bytes a document.

Nothing in a file is taken for more than text: JSON and Parquet are parsed by
libraries that run and unpickle nothing, and no name in them is a path.
"""

import bz2
from collections.abc import Iterator
import contextlib
import errno
import functools
import gzip
import json
import lzma
import os
import shutil
import tempfile
from typing import Any, BinaryIO, NamedTuple
import zlib

import numpy as np

from hope_jax.config import ConfigError
from hope_jax.config.build import first_line
from hope_jax.data import documents, texts

_COMPRESSED = {'.gz': gzip, '.bz2': bz2, '.xz': lzma}
_LINES = ('.jsonl', '.ndjson')
_PARQUET = ('.parquet',)
# Bytes and lines of JSON Lines that are checked one by one when a file is
# opened, about a second; a bad line further on is told when it is reached.
_CHECKED, _CHECKED_LINES = 2**28, 2**17
# Bytes of a file, or of a column, in memory while it is indexed or unpacked.
_CHUNK = 2**24


class Where(NamedTuple):
  """A file, and what makes it another one."""

  path: str
  name: str  # of the document, or the first part of its documents' names
  size: int
  changed: int  # time of the last change, in ns


def where(path: str, name: str) -> Where:
  """Returns the key of a file as it is now."""
  status = os.stat(path)
  return Where(path, name, status.st_size, status.st_mtime_ns)


def is_plain(path: str) -> bool:
  """Returns whether a file is one document as it is."""
  suffix = os.path.splitext(path)[1].lower()
  return suffix not in (*_COMPRESSED, *_LINES, *_PARQUET, '.zst')


# An evaluation opens its source anew: an index is made once.
@functools.lru_cache(maxsize=4096)
def open_file(file: Where, field: str) -> 'Lines | Regions':
  """Returns the documents of a file, empty ones left out.

  Args:
    file: .jsonl or .ndjson (an object a line), .parquet, or any text; each may
      be compressed, with .gz, .bz2 or .xz behind its name.
    field: the field, or the column, of the text.

  Raises:
    ConfigError: it cannot be read, or a record holds no text.
  """
  content: str | BinaryIO = file.path
  size = file.size
  stem, suffix = os.path.splitext(file.path)
  if suffix.lower() == '.zst':
    raise ConfigError(
        f'data.path: {file.path!r} is compressed with zstd, which is not read;'
        f' unpack it, or compress it with one of {", ".join(_COMPRESSED)}'
    )
  if suffix.lower() in _COMPRESSED:
    content = _unpack(file.path, _COMPRESSED[suffix.lower()])
    size = os.fstat(content.fileno()).st_size
    suffix = os.path.splitext(stem)[1]
    if suffix.lower() in (*_COMPRESSED, '.zst'):
      raise ConfigError(
          f'data.path: {file.path!r} is compressed twice; unpack it once'
      )
  if suffix.lower() in _LINES:
    return Lines(content, size, file, field)
  if suffix.lower() in _PARQUET:
    return _parquet(content, file, field)
  return Regions(content, np.array([0, size]), file.name, numbered=False)


class Lines:
  """The lines of a JSON Lines file; a blank one, or an empty text, is none."""

  def __init__(
      self, content: str | BinaryIO, size: int, file: Where, field: str
  ):
    """Indexes the lines, and checks the first ones.

    Args:
      content: the file, or what it was unpacked into.
      size: of it, in bytes.
      file: for names.
      field: of a line's object that holds the text.

    Raises:
      ConfigError: a line is not an object with a text.
    """
    self._content, self._file, self._field = content, file, field
    self._ends = _line_ends(texts.FileText(content, 0, size))
    filled = np.ones(len(self._ends), bool)
    # A line of one byte or none holds no object.
    filled[0] = self._ends[0] > 1
    np.greater(np.diff(self._ends), 2, out=filled[1:])
    # Short lines are many: four bytes are enough for most files.
    self._numbers = np.flatnonzero(filled).astype(
        np.min_scalar_type(len(self._ends))
    )
    self._numbers = self._numbers[self._check()]

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    if len(self._line(index)) > texts.PIECE:
      make = functools.partial(self._text, index)
      return self.name(index), texts.LateText(make)
    return self.name(index), self._text(index)

  def name(self, index: int) -> str:
    """Returns the file's name and the number of the line, from 1."""
    return f'{self._file.name}:{int(self._numbers[index]) + 1}'

  def ranks(self) -> np.ndarray:
    """Returns what decides who is held out, see `documents.ranks`."""
    return documents.numbered_ranks(self._file.name, self._numbers, 1)

  def _check(self) -> np.ndarray:
    """Returns which lines have a text, as far as lines are checked."""
    kept = np.ones(len(self._numbers), bool)
    first = self._ends[self._numbers[:_CHECKED_LINES]]
    checked = int(np.searchsorted(first, _CHECKED))
    content = self._content
    with contextlib.ExitStack() as stack:
      if isinstance(content, str) and checked:
        # Opened once, and not for each line.
        self._content = stack.enter_context(open(content, 'rb'))
      for index in range(checked):
        kept[index] = bool(self._text(index))
    self._content = content
    return kept

  def _line(self, index: int) -> texts.FileText:
    line = int(self._numbers[index])
    begin = int(self._ends[line - 1]) + 1 if line else 0
    return texts.FileText(self._content, begin, int(self._ends[line]))

  def _text(self, index: int) -> bytes:
    try:
      # Python's own rule for bytes; a lone half of a pair is let through.
      line = self._line(index)[:].decode('utf-8-sig', 'surrogatepass')
      if not line.strip():
        return b''
      record = json.loads(line)
      del line
      if not isinstance(record, dict):
        raise ValueError(f'is {type(record).__name__} and not an object')
      if self._field not in record:
        raise ValueError(f'has no {self._field!r}, but {_some(record)}')
      text = record[self._field]
      if not isinstance(text, str):
        raise ValueError(
            f'holds {type(text).__name__} and not text in {self._field!r}'
        )
      return text.encode('utf-8', 'surrogatepass')
    except (ValueError, RecursionError) as error:
      if isinstance(error, ConfigError):
        raise
      what = first_line(error, 'is not JSON')
      if not what.startswith(('is ', 'has ', 'holds ')):
        what = f'is not JSON ({what})'
      raise ConfigError(
          f'data.path: line {self._numbers[index] + 1} of {self._file.path!r}'
          f' {what}; give one object a line, with the text in the field that'
          ' data.text_field names'
      ) from error


class Regions:
  """Documents that lie one after the other in a file."""

  def __init__(
      self,
      content: str | BinaryIO,
      edges: np.ndarray,
      name: str,
      *,
      numbered: bool = True,
  ):
    """Keeps where the documents are.

    Args:
      content: the file.
      edges: [N + 1], where each begins, and where the last one ends.
      name: of all.
      numbered: a document's name ends in its index, from 0.
    """
    self._content, self._edges, self._name = content, edges, name
    self._kept = np.flatnonzero(np.diff(edges))
    self._numbered = numbered

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    row = self._kept[index]
    text = texts.FileText(
        self._content, int(self._edges[row]), int(self._edges[row + 1])
    )
    return self.name(index), texts.short_or_late(text)

  def name(self, index: int) -> str:
    """Returns the name of all, and where there are several the index."""
    row = self._kept[index]
    return f'{self._name}:{row}' if self._numbered else self._name

  def ranks(self) -> np.ndarray:
    """Returns what decides who is held out, see `documents.ranks`."""
    if self._numbered:
      return documents.numbered_ranks(self._name, self._kept)
    return documents.name_ranks([self._name] * len(self))


def _line_ends(text: texts.FileText) -> np.ndarray:
  """Returns where each line ends, [N] int64; the last may want a newline."""
  ends = []
  for at in range(0, len(text), _CHUNK):
    chunk = np.frombuffer(text[at : at + _CHUNK], np.uint8)
    ends.append(np.flatnonzero(chunk == 10) + at)
  ends.append(np.array([len(text)]))
  return np.concatenate(ends)


def _some(names: Any) -> str:
  """Returns the first of some names that a stranger may have chosen."""
  shown = [repr(name)[:40] for name in list(names)[:8]]
  return ', '.join(shown) or 'nothing'


def _unpack(path: str, module: Any) -> BinaryIO:
  """Returns a temporary file of what a compressed one holds."""
  out = tempfile.TemporaryFile(prefix='hope_jax-')
  try:
    with module.open(path, 'rb') as packed:
      shutil.copyfileobj(packed, out, 2**20)
    out.flush()
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
    raise _fault(path, error, 'cannot be unpacked') from error
  return out


def _fault(path: str, error: Exception, what: str) -> ConfigError:
  code = getattr(error, 'errno', None)
  if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return ConfigError(
        f'data.path: no room to unpack {path!r} in {tempfile.gettempdir()!r};'
        ' set TMPDIR to a folder with more, or give it unpacked'
    )
  return ConfigError(
      f'data.path: {path!r} {what} ({first_line(error)}); give a whole file'
  )


def _parquet(content: str | BinaryIO, file: Where, field: str) -> Regions:
  """Unpacks the texts of a Parquet file."""
  try:
    # Imported here: it is large, and the other sources do without.
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError as error:
    raise ConfigError(
        f'data.path: {file.path!r} needs pyarrow ({error}); install the extra'
        ' hope_jax[parquet]'
    ) from error
  out, sizes = tempfile.TemporaryFile(prefix='hope_jax-'), [np.zeros(1, int)]
  try:
    # A column is read through a buffer: it may be as large as the file.
    with pq.ParquetFile(content, buffer_size=_CHUNK) as reader:
      _require_column(reader.schema_arrow, field, file.path)
      for batch in _batches(reader, field):
        column = batch.column(0)
        if column.null_count:
          row = sum(map(len, sizes)) - 1 + column.is_null().index(True).as_py()
          raise ConfigError(
              f'data.path: row {row} of {file.path!r} has no text in {field!r};'
              ' leave such rows out'
          )
        _, edges, values = column.cast(pa.large_binary()).buffers()
        edges = np.frombuffer(edges, np.int64)[: len(column) + 1]
        if edges[-1] > edges[0]:
          out.write(memoryview(values)[edges[0] : edges[-1]])
        sizes.append(np.diff(edges))
    out.flush()
  except (OSError, pa.ArrowException) as error:
    raise _fault(file.path, error, 'cannot be read as Parquet') from error
  return Regions(out, np.cumsum(np.concatenate(sizes)), file.name)


def _require_column(schema: Any, field: str, path: str) -> None:
  """Raises a ConfigError unless a column of text has this name."""
  if field not in schema.names:
    raise ConfigError(
        f'data.text_field: no column {field!r} in {path!r}; it has'
        f' {_some(schema.names)}'
    )
  if schema.names.count(field) > 1:
    raise ConfigError(
        f'data.text_field: {path!r} has several columns {field!r}; rename all'
        ' but one'
    )
  kind = schema.field(field).type
  if str(kind).startswith('dictionary'):
    kind = kind.value_type
  if not str(kind).removeprefix('large_').startswith(('string', 'binary')):
    raise ConfigError(
        f'data.text_field: {field!r} in {path!r} holds {str(kind)[:40]}; give a'
        ' column of text'
    )


def _batches(reader: Any, field: str) -> Iterator[Any]:
  """Yields a column of a Parquet file, a part in memory at a time.

  One group of rows after the other: asked for all of them, the library keeps
  what it has read of each, at four times the cost.
  """
  rows = _rows_of_chunk(reader.metadata, field)
  for group in range(reader.num_row_groups):
    yield from reader.iter_batches(
        rows, row_groups=[group], columns=[field], use_threads=False
    )


def _rows_of_chunk(metadata: Any, field: str) -> int:
  """Returns how many rows of a column make a chunk of memory, about."""
  total = 0
  for group in range(metadata.num_row_groups):
    columns = metadata.row_group(group)
    for index in range(columns.num_columns):
      column = columns.column(index)
      if column.path_in_schema == field:
        total += column.total_uncompressed_size
  return int(np.clip(_CHUNK * metadata.num_rows // max(total, 1), 1, 2**16))
