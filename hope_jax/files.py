"""Files that are written whole or not at all."""

from collections.abc import Iterator
import contextlib
import os
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w') -> Iterator[IO[Any]]:
  """Opens a new file that takes the place of `path` once it is on the disk.

  Args:
    path: the file; its folder exists.
    mode: 'w' for text in UTF-8, 'wb' for bytes.

  Yields:
    The open file. After an exception `path` is what it was, and nothing is left
    beside it.

  Raises:
    OSError: it cannot be written.
  """
  new = path + '.new'
  try:
    with open(new, mode, encoding=None if 'b' in mode else 'utf-8') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(new, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(new)
    raise
