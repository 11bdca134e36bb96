"""Files that are written whole or not at all."""

from collections.abc import Iterator
import contextlib
import errno
import os
import secrets
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
    OSError: it cannot be written, or `path` is a folder or a device.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    raise OSError(errno.EINVAL, 'there is something that is no file', path)
  # By a name that no file has: nothing that was there is overwritten.
  new = f'{path}.{secrets.token_hex(4)}.new'
  try:
    encoding = None if 'b' in mode else 'utf-8'
    with open(new, mode.replace('w', 'x'), encoding=encoding) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(new, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(new)
    raise
