"""Files that are written whole or not at all, and by one program at a time."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import time
from typing import IO, Any

# What is being written just now.
_UNFINISHED: set[str] = set()


@contextlib.contextmanager
def unfinished(path: str) -> Iterator[None]:
  """Removes a file or folder unless the block that writes it ends well."""
  _UNFINISHED.add(path)
  try:
    yield
  except BaseException:
    remove_while_written(path)
    raise
  finally:
    _UNFINISHED.discard(path)


def remove_unfinished() -> None:
  """Removes all that is being written, for a program that stops at once."""
  for path in tuple(_UNFINISHED):
    remove_while_written(path)


def remove_while_written(path: str) -> None:
  """Removes a file; or a folder, until no thread adds to it any more."""
  if not os.path.isdir(path):
    with contextlib.suppress(OSError):
      os.remove(path)
    return
  gone = 0
  for _ in range(100):
    gone = 0 if os.path.isdir(path) else gone + 1
    if gone == 3:
      return
    shutil.rmtree(path, ignore_errors=True)
    time.sleep(0.02)


def require_file(path: str) -> None:
  """Refuses a folder, and a device or a pipe, which may have no end.

  Raises:
    OSError: something that is no file has this name.
  """
  if os.path.isdir(path):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
  if os.path.exists(path) and not os.path.isfile(path):
    raise OSError(errno.EINVAL, 'there is something that is no file', path)


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
  require_file(path)
  # By a name that no file has: nothing that was there is overwritten.
  new = f'{path}.{secrets.token_hex(4)}.new'
  encoding = None if 'b' in mode else 'utf-8'
  with unfinished(new):
    with open(new, mode.replace('w', 'x'), encoding=encoding) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(new, path)


class LockedError(Exception):
  """Another program holds a lock; the message says which, as far as known."""


class Lock:
  """One writer of a folder: a lock that ends with the program that holds it."""

  def __init__(self, path: str):
    """Takes the lock.

    Args:
      path: a file in the folder, made where it is missing; it stays.

    Raises:
      LockedError: another program has it.
      OSError: it cannot be written.
    """
    self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      holder = os.read(self._file, 200).decode('utf-8', 'replace').strip()
      os.close(self._file)
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        raise LockedError(holder or 'another program') from None
      if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        self._file = -1  # A file system without locks: nobody is kept out.
        return
      raise
    who = f'pid {os.getpid()} on {socket.gethostname()}\n'
    with contextlib.suppress(OSError):  # A full disk: it is held all the same.
      os.ftruncate(self._file, 0)
      os.write(self._file, who.encode())

  def release(self) -> None:
    """Lets the next one in."""
    if self._file >= 0:
      with contextlib.suppress(OSError):
        os.ftruncate(self._file, 0)
      os.close(self._file)
      self._file = -1
