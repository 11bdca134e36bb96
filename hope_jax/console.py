"""What is said to people: to a terminal, a pipe or a file that may go away.

Progress and errors go to standard error, and whoever listens may leave (a dead
`tee`, a lost `ssh`): the run goes on, quietly. Results go to standard output,
and one that cannot be written is an error.
"""

from collections.abc import Iterator
import contextlib
import io
import os
import sys
from typing import Any


class _Quiet(io.TextIOBase):
  """Standard error, whichever it is by now; a write never fails."""

  def write(self, text: str) -> int:
    stream = sys.stderr
    try:
      stream.write(text)
      stream.flush()
    except AttributeError:  # There is none.
      pass
    except RuntimeError:  # A signal's handler came while something is written.
      with contextlib.suppress(OSError):
        os.write(stream.fileno(), text.encode())
    except (OSError, ValueError):
      silence(stream)
    return len(text)

  def flush(self) -> None:
    """Does nothing: each write is flushed."""

  def isatty(self) -> bool:
    """Returns whether a terminal shows it."""
    try:
      return sys.stderr.isatty()
    except (AttributeError, ValueError):
      return False

  @property
  def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
    """What a terminal can show: a bar of blocks, or of signs of ASCII."""
    return getattr(sys.stderr, 'encoding', None) or 'ascii'

  def fileno(self) -> int:
    """Returns the file descriptor, for the width of the terminal."""
    return sys.stderr.fileno()


stderr = _Quiet()


def silence(stream: Any) -> None:
  """Sends all that a stream still holds, and will be given, nowhere.

  Python writes what is left in a stream once more as it exits, and complains.
  """
  with contextlib.suppress(AttributeError, OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say(text: str) -> None:
  """Writes a line to standard error, if anybody listens."""
  stderr.write(f'{text}\n')


def show(text: str) -> None:
  """Writes a result to standard output.

  Raises:
    OSError: it cannot be written; BrokenPipeError: nobody reads on.
  """
  with _to_output():
    print(text, flush=True)


def write(data: bytes) -> None:
  """Writes bytes of a result to standard output, and shows them.

  Where it takes text alone (a notebook's, or one that a program put there), as
  UTF-8.

  Raises:
    OSError: as `show`.
  """
  stream = getattr(sys.stdout, 'buffer', None)
  with _to_output():
    if stream is None:
      sys.stdout.write(data.decode('utf-8', 'replace'))
    else:
      sys.stdout.flush()
      stream.write(data)
    sys.stdout.flush()


@contextlib.contextmanager
def _to_output() -> Iterator[None]:
  try:
    yield
  except OSError as error:
    silence(sys.stdout)
    raise OSError(error.errno, error.strerror, 'standard output') from None


def open_closed() -> None:
  """Gives the standard streams that are closed a place, for a program at start.

  Else the next file that is opened takes the number of one of them, and what is
  meant for people ends up in a checkpoint. A result written to a closed output
  stays an error, as the place is open for reading alone.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDONLY)  # Takes the lowest number there is.
      if number:
        stream = open(number, 'w', encoding='utf-8', closefd=False)
        setattr(sys, name, stream)
