"""Where documents come from: one interface over four kinds of source.

A source gives random access to named documents: `len(source)`, `source[i]`, a
`(name, text)` pair with the text in bytes, and `source.name(i)`, the name
alone, which costs no reading. A document's name says nothing of the machine it
is read on, because it decides whether the document is held out.
"""

from collections.abc import Sequence
import glob
import hashlib
import os
import pathlib
import sysconfig
from typing import Any, Protocol

import grain
import numpy as np

from hope_jax.config import ConfigError, DataConfig

# What a Python installation carries beside the library itself: compiled files,
# other people's packages, the library's own tests; and the documentation as one
# generated file, which by its size alone would be most of the held-out text.
_NOT_LIBRARY = frozenset({
    '__pycache__', 'dist-packages', 'idle_test', 'pydoc_data', 'site-packages',
    'test', 'tests',
})


class Source(Protocol):
  """Random access to named documents."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    ...

  def name(self, index: int) -> str:
    """Returns the name of a document without reading it."""
    ...


class Files:
  """Documents that are files, read at each access (the system caches them)."""

  def __init__(self, paths: Sequence[str], *, root: str):
    """Keeps the paths, in the order given; names are relative to `root`."""
    self._paths = tuple(paths)
    self._root = root

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    path = self._paths[index]
    try:
      return self.name(index), pathlib.Path(path).read_bytes()
    except OSError as error:
      raise ConfigError(
          f'data.path: cannot read {path!r} ({error.strerror}); give files that'
          ' can be read'
      ) from error

  def name(self, index: int) -> str:
    """Returns the path relative to the root, with forward slashes."""
    path = os.path.relpath(self._paths[index], self._root)
    return pathlib.PurePath(path).as_posix()


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

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    record = self._reader[index]
    if self._field is not None:
      if self._field not in record:
        raise ConfigError(
            f'data.text_field: no field {self._field!r} in {self._label}; its'
            f' records have: {", ".join(sorted(record))}'
        )
      record = record[self._field]
    if isinstance(record, str):
      record = record.encode()
    if not isinstance(record, bytes):
      raise ConfigError(
          f'data.text_field: {self._field!r} in {self._label} holds'
          f' {type(record).__name__}; give a field of text'
      )
    return self.name(index), record

  def name(self, index: int) -> str:
    """Returns the label and the index."""
    return f'{self._label}:{index}'


class _Subset:
  """Some documents of another source, by their indices in it."""

  def __init__(self, source: Source, indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    return self._source[int(self._indices[index])]

  def name(self, index: int) -> str:
    return self._source.name(int(self._indices[index]))


class _Part:
  """One document: a part of the only document of another source."""

  def __init__(self, source: Source, part: slice):
    self._source = source
    self._part = part

  def __len__(self) -> int:
    return 1

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    name, text = self._source[range(1)[index]]
    return name, text[self._part]

  def name(self, index: int) -> str:
    return self._source.name(range(1)[index])


def split(source: Source, holdout: float) -> tuple[Source, Source]:
  """Splits documents into those for training and those held out.

  A document is held out if the SHA-256 of its name, read as a number in [0, 1),
  is below `holdout`: the choice depends on nothing else, so that it is the same
  on every machine and stays when other documents come or go. Where that leaves
  a side empty (few documents), the document of the lowest or of the highest
  hash goes there.

  A source of a single document has no second one to hold out: the last share
  `holdout` of its bytes, one at least, is held out instead.

  Args:
    source: the documents.
    holdout: share to hold out, in (0, 1).

  Returns:
    The training documents and the held-out ones, in the order of the source.

  Raises:
    ConfigError: if there is no document, or a single one of a single byte.
  """
  if not len(source):
    raise ConfigError('data.path: no documents in it; give a source of text')
  if len(source) == 1:
    name, text = source[0]
    if len(text) < 2:
      raise ConfigError(
          f'data.path: {name!r} has {len(text)} bytes, too few to hold any out;'
          ' give a longer text'
      )
    cut = len(text) - min(max(1, round(len(text) * holdout)), len(text) - 1)
    return _Part(source, slice(cut)), _Part(source, slice(cut, None))
  rank = np.array([_rank(source.name(i)) for i in range(len(source))])
  heldout = rank < holdout
  if not heldout.any():
    heldout[rank.argmin()] = True
  if heldout.all():
    heldout[rank.argmax()] = False
  return (
      _Subset(source, np.flatnonzero(~heldout)),
      _Subset(source, np.flatnonzero(heldout)),
  )


def _rank(name: str) -> float:
  """Returns a number in [0, 1) that depends on the name alone."""
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def open_source(config: DataConfig) -> Source:
  """Opens the documents that a configuration names.

  - 'stdlib': the source files of the Python standard library that runs this.
  - 'files': `path` is a file, or a glob (`**` goes into folders); each file is
    a document, of any bytes; empty files are left out.
  - 'array_record': `path` is a file or a glob of files; each record is the text
    of a document. A record's name is its index over all files in sorted order.
  - 'tfds': `path` is the name of a dataset, or the folder of a prepared one,
    with '@split' behind it for another split than 'train'; `text_field` is the
    field of the text. It is read without TensorFlow, which takes a dataset
    prepared with `file_format='array_record'`; nothing is downloaded.

  Args:
    config: where to read from.

  Returns:
    The documents.

  Raises:
    ConfigError: if there is nothing to read there, or no text.
  """
  if config.source == 'stdlib':
    return _stdlib()
  if config.source == 'files':
    paths = [p for p in _match(config.path) if os.path.getsize(p)]
    if not paths:
      raise ConfigError(
          f'data.path: {config.path!r} holds no text, only empty files; give'
          ' files with text in them'
      )
    return Files(paths, root=_fixed_folder(config.path))
  if config.source == 'array_record':
    return _array_record(config.path)
  reader, label = open_tfds(config.path)
  return Records(reader, label=label, field=config.text_field)


def _match(path: str) -> list[str]:
  """Returns the files that a path or a glob names, sorted."""
  if os.path.isdir(path):
    raise ConfigError(
        f'data.path: {path!r} is a folder; give a file, or a glob such as'
        f' {os.path.join(path, "**", "*.txt")!r}'
    )
  # A file may have glob characters in its name; then it is that file.
  found = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
  files = sorted(p for p in found if os.path.isfile(p))
  if not files:
    raise ConfigError(
        f'data.path: no file matches {path!r}; give an existing file, or a glob'
        ' that matches some'
    )
  return files


def _fixed_folder(path: str) -> str:
  """Returns the folder that holds all matches: the part before wildcards."""
  parts = pathlib.PurePath(path).parts[:-1]
  if not os.path.exists(path):
    wild = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    parts = parts[: wild[0]] if wild else parts
  return str(pathlib.PurePath(*parts))


def _stdlib() -> Source:
  root = sysconfig.get_path('stdlib')
  paths = []
  for folder, folders, files in os.walk(root):
    # In place, so that os.walk does not go down there.
    folders[:] = [f for f in folders if f not in _NOT_LIBRARY]
    paths += [os.path.join(folder, f) for f in files if f.endswith('.py')]
  # Sorted by name rather than by path: the order is then that of every machine.
  paths = sorted(
      (p for p in paths if os.path.isfile(p) and os.path.getsize(p)),
      key=lambda p: pathlib.PurePath(os.path.relpath(p, root)).as_posix(),
  )
  if not paths:
    raise ConfigError(
        f'data.source: no .py files under {root!r}; this Python comes without'
        " its library's source, so set data.source='files' and data.path"
    )
  return Files(paths, root=root)


def _array_record(path: str) -> Source:
  files = _match(path)
  try:
    reader = grain.sources.ArrayRecordDataSource(files)
    return Records(reader, label='record')
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0] if str(error) else 'unreadable'
    raise ConfigError(
        f'data.path: {path!r} is not ArrayRecord ({reason}); give files written'
        ' by array_record, one document a record'
    ) from error


def open_tfds(path: str) -> tuple[Any, str]:
  """Opens a prepared TFDS dataset: its random-access reader, and its name.

  Args:
    path: name or folder of a dataset, with '@split' for another than 'train'.

  Raises:
    ConfigError: if TFDS is missing, or cannot open it.
  """
  try:
    # Imported here: it takes seconds, and the other sources do without.
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ConfigError(
        f'data.source: tfds cannot be imported ({error}); install the extra'
        " hope_jax[datasets], or set data.source='files'"
    ) from error
  name, _, part = path.partition('@')
  part = part or 'train'
  try:
    if os.path.isdir(name):
      builder = tfds.builder_from_directory(name)
    else:
      builder = tfds.builder(name)
    # TFDS wraps it in a decorator that hides its arguments from type checkers.
    reader = builder.as_data_source(split=part)  # pyright: ignore
  except Exception as error:  # TFDS raises its own kinds, most over many lines.
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise ConfigError(
        f'data.path: cannot open {path!r} with TFDS ({reason}); give name,'
        " folder or name@split of a dataset prepared with"
        " file_format='array_record'"
    ) from error
  return reader, f'{builder.info.full_name}/{part}'
