"""Texts that are read a part at a time.

A text is what `bytes` already is: it has a `len`, and slices that are bytes.
Long ones are of the classes here, which hold a place and no content, so that a
document costs what is read of it and not its length, however often the pipeline
has it in hand. Read with `pread` and not through a memory map: a file that is
cut while it is mapped kills the process.
"""

from collections.abc import Callable
import os
from typing import BinaryIO, Protocol

from hope_jax.config import ConfigError

# Bytes up to which a text is read whole, and the least that is read of others.
PIECE = 2**18


class Text(Protocol):
  """Bytes, or what reads some when it is sliced."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, part: slice, /) -> bytes:
    ...


class FileText:
  """A part of a file."""

  def __init__(self, file: str | BinaryIO, begin: int, end: int):
    """Keeps a place.

    Args:
      file: a path, opened for each read; or an open file.
      begin: of the text in the file, in bytes.
      end: where it ends.
    """
    self._file = file
    self._begin, self._end = begin, end

  def __len__(self) -> int:
    return self._end - self._begin

  def __getitem__(self, part: slice) -> bytes:
    start, stop, _ = part.indices(len(self))
    size = max(stop - start, 0)
    try:
      if isinstance(self._file, str):
        with open(self._file, 'rb') as file:
          found = _read(file, size, self._begin + start)
      else:
        found = _read(self._file, size, self._begin + start)
    except OSError as error:
      raise _unreadable(self._file, error) from error
    if len(found) < size:
      raise ConfigError(
          f'data.path: {self._file!r} has become shorter while it is read;'
          ' start again with files that do not change'
      )
    return found

  def part(self, begin: int, end: int) -> 'FileText':
    """Returns bytes begin .. end as a text."""
    return FileText(self._file, self._begin + begin, self._begin + end)


class LateText:
  """A text that has to be made whole, at its first use; it goes with this."""

  def __init__(self, make: Callable[[], bytes]):
    """Keeps how the text is made."""
    self._make = make
    self._text = None

  def _whole(self) -> bytes:
    if self._text is None:
      self._text = self._make()
    return self._text

  def __len__(self) -> int:
    return len(self._whole())

  def __getitem__(self, part: slice) -> bytes:
    return self._whole()[part]

  def part(self, begin: int, end: int) -> 'LateText':
    """Returns bytes begin .. end as a text."""
    return LateText(lambda: self._make()[begin:end])


def size_of(path: str) -> int:
  """Returns the size of a file in bytes."""
  try:
    return os.path.getsize(path)
  except OSError as error:
    raise _unreadable(path, error) from error


def _unreadable(file: str | BinaryIO, error: OSError) -> ConfigError:
  return ConfigError(
      f'data.path: cannot read {file!r} ({error.strerror}); give files that can'
      ' be read'
  )


def _read(file: BinaryIO, size: int, at: int) -> bytes:
  """Returns `size` bytes from a place on; fewer where the file ends."""
  parts = []
  while size > 0:
    # The system gives 2 GiB at most at a time.
    part = os.pread(file.fileno(), size, at)
    if not part:
      break
    parts.append(part)
    size, at = size - len(part), at + len(part)
  return parts[0] if len(parts) == 1 else b''.join(parts)


def short_or_late(text: FileText) -> bytes | FileText:
  """Returns a short text whole, a long one as it is."""
  return text[:] if len(text) <= PIECE else text


def part(text: Text, begin: int, end: int) -> Text:
  """Returns bytes begin .. end of a text, without reading a long one."""
  if isinstance(text, (FileText, LateText)):
    return text.part(begin, end)
  return text[begin:end]
