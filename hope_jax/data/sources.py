"""Where documents come from, and which of them are held out."""

from collections.abc import Sequence
import os
import pathlib
import sysconfig
from typing import Any, NamedTuple

import grain
import numpy as np

from hope_jax.config import ConfigError, DataConfig
from hope_jax.config.build import first_line
from hope_jax.data import matching, records, texts
from hope_jax.data.documents import (
  Files,
  Joined,
  Records,
  Source,
  name_of,
  ranks,
)

# What a Python installation carries beside the library itself: compiled files,
# other people's packages, the library's own tests; and the documentation as one
# generated file, which by its size alone would be most of the held-out text.
_NOT_LIBRARY = frozenset({
    '__pycache__', 'dist-packages', 'idle_test', 'pydoc_data', 'site-packages',
    'test', 'tests',
})


class _Subset:
  """Some documents of another source, by their indices in it."""

  def __init__(self, source: Source, indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    return self._source[int(self._indices[index])]

  def name(self, index: int) -> str:
    return self._source.name(int(self._indices[index]))


class _Part:
  """One document: a part of the only document of another source."""

  def __init__(self, source: Source, begin: int, end: int):
    self._source = source
    self._part = begin, end

  def __len__(self) -> int:
    return 1

  def __getitem__(self, index: int) -> tuple[str, texts.Text]:
    name, text = self._source[range(1)[index]]
    return name, texts.part(text, *self._part)

  def name(self, index: int) -> str:
    return self._source.name(range(1)[index])


def split(source: Source, holdout: float) -> tuple[Source, Source]:
  """Splits documents into those for training and those held out.

  A document is held out if a hash of its name, read as a number in [0, 1), is
  below `holdout`: the choice depends on nothing else, so that it is the same on
  every machine and stays when other documents come or go. The hash is SHA-256,
  and of a record of a file that of the file and SplitMix64 of the record's
  number. Where that leaves a side empty (few documents), the document of the
  lowest or of the highest hash goes there.

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
    size = len(text)
    cut = size - min(max(1, round(size * holdout)), size - 1)
    return _Part(source, 0, cut), _Part(source, cut, size)
  rank = ranks(source)
  heldout = rank < holdout
  if not heldout.any():
    heldout[rank.argmin()] = True
  if heldout.all():
    heldout[rank.argmax()] = False
  return (
      _Subset(source, np.flatnonzero(~heldout)),
      _Subset(source, np.flatnonzero(heldout)),
  )


class Part(NamedTuple):
  """One of the sources of a configuration, split."""

  label: str  # as in data.mixture; '' where there is one source alone
  weight: float
  train: Source
  heldout: Source


def open_parts(config: DataConfig) -> list[Part]:
  """Opens and splits each source of a configuration.

  A file belongs to the first source that names it: it must not be held out of
  one and trained on with another.

  Raises:
    ConfigError: if there is nothing to read in one of them, or no text.
  """
  parts, taken = [], set()
  for label, weight, one in config.parts():
    source = open_source(one, taken if label else None)
    parts.append(Part(label, weight, *split(source, config.holdout)))
  return parts


def heldout_of(parts: Sequence[Part], label: str | None = None) -> Source:
  """Returns the held-out documents of one source, or of all, evenly mixed."""
  if label is not None:
    parts = [part for part in parts if part.label == label]
    if not parts:
      raise ConfigError(f'data.mixture has no source {label!r}')
  if len(parts) == 1:
    return parts[0].heldout
  place = [(np.arange(n) + 0.5) / n for n in (len(p.heldout) for p in parts)]
  order = np.argsort(np.concatenate(place), kind='stable')
  return _Subset(Joined([part.heldout for part in parts]), order)


def open_source(config: DataConfig, taken: set | None = None) -> Source:
  """Opens the documents that a configuration names.

  - 'stdlib': the source files of the Python standard library that runs this.
  - 'files': `path` is a file, or a glob (`**` goes into folders); each file is
    a document, of any bytes, but for .jsonl and .parquet, which hold one a line
    or a row, in `text_field`; empty ones are left out. See `records`,
    `matching`.
  - 'array_record': `path` is a file or a glob of files; each record is the text
    of a document. A record's name is its index over all files in sorted order.
  - 'tfds': `path` is the name of a dataset, or the folder of a prepared one,
    with '@split' behind it for another split than 'train'; `text_field` is the
    field of the text. It is read without TensorFlow, which takes a dataset
    prepared with `file_format='array_record'`; nothing is downloaded.

  Args:
    config: where to read from; a mixture is opened by `open_parts`.
    taken: identities of files that are left out; those read here are added.

  Returns:
    The documents.

  Raises:
    ConfigError: if there is nothing to read there, or no text.
  """
  if config.source == 'stdlib':
    return _stdlib(taken)
  if config.source == 'files':
    return _files(matching.match(config.path, taken), config)
  if config.source == 'array_record':
    return _array_record(config.path, taken)
  reader, label = open_tfds(config.path)
  return Records(reader, label=label, field=config.text_field)


def _files(paths: Sequence[str], config: DataConfig) -> Source:
  """Opens files, each by what it is."""
  root = matching.fixed_folder(config.path)
  sources, plain = [], []
  for path in filter(texts.size_of, paths):
    if records.is_plain(path):
      plain.append(path)
      continue
    sources.append(Files(plain, root=root))
    where = records.where(path, name_of(path, root))
    sources.append(records.open_file(where, config.text_field))
    plain = []
  sources.append(Files(plain, root=root))
  sources = [source for source in sources if len(source)]
  if not sources:
    raise ConfigError(
        f'data.path: {config.path!r} holds no text, only empty files; give'
        ' files with text in them'
    )
  return sources[0] if len(sources) == 1 else Joined(sources)


def _stdlib(taken: set | None) -> Source:
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
  return Files(matching.once(paths, taken), root=root)


def _array_record(path: str, taken: set | None) -> Source:
  files = matching.match(path, taken)
  try:
    reader = grain.sources.ArrayRecordDataSource(files)
    return Records(reader, label='record')
  except (RuntimeError, ValueError) as error:
    reason = first_line(error, 'unreadable')
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
    reason = first_line(error)
    raise ConfigError(
        f'data.path: cannot open {path!r} with TFDS ({reason}); give name,'
        " folder or name@split of a dataset prepared with"
        " file_format='array_record'"
    ) from error
  return reader, f'{builder.info.full_name}/{part}'
