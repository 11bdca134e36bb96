"""What is said of a read or a write that failed: one line, and why."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import errno
import gc
import logging
import math
import os
import re
import resource
import sys
import time
from typing import Any
import warnings

# Addresses that a small Hope takes: with 2.5 GB its compiler aborts, on two
# cores. Each core has threads, with a stack.
_ADDRESSES = int(2.75 * 2**30) + 2**24 * (os.cpu_count() or 1)
# Addresses left for what is compiled.
_COMPILER = 2**28
_MEMORY = re.compile(
    'RESOURCE_EXHAUSTED|out of memory|cannot allocate memory|bad_alloc'
    "|failed to map segment|can't start new thread|unable to allocate",
    re.IGNORECASE,
)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error, and those that led to it."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException | None) -> bool:
  """Returns whether an error, or one that led to it, is a full disk."""
  return any(
      getattr(e, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
      or 'No space left' in str(e) or 'quota exceeded' in str(e)
      for e in _chain(error)
  )


def _is_too_large(error: BaseException) -> bool:
  return any(
      getattr(e, 'errno', None) == errno.EFBIG or 'File too large' in str(e)
      for e in _chain(error)
  )


def is_out_of_memory(error: BaseException) -> bool:
  """Returns whether an error, or one that led to it, is a lack of memory."""
  return any(
      isinstance(e, MemoryError) or getattr(e, 'errno', None) == errno.ENOMEM
      or _MEMORY.search(str(e))
      for e in _chain(error)
  )


def lack_of_memory() -> str:
  """Returns what to say where a limit leaves JAX itself no room; '' where not.

  Its libraries map 2 GB of addresses for their code and their threads, and
  abort the process where the compiler lacks some: nothing can be said then.
  """
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit == resource.RLIM_INFINITY or limit >= _ADDRESSES:
    return ''
  return (
      f'out of memory: this process may map {limit / 2**30:.1f} GB (ulimit -v),'
      f' and JAX alone takes {_ADDRESSES / 2**30:.1f}; raise the limit'
  )


def require_memory(arrays: Iterable[Any]) -> None:
  """Refuses arrays that a limit of addresses leaves no room for.

  Before anything is compiled: the compiler aborts where it lacks memory.

  Args:
    arrays: of a run's state, or their shapes; a step takes as much again.

  Raises:
    MemoryError: there is no room for them.
  """
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit == resource.RLIM_INFINITY:
    return
  size = sum(x.size * x.dtype.itemsize for x in arrays)
  with contextlib.suppress(OSError), open('/proc/self/statm', 'rb') as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
    if used + 2 * size + _COMPILER > limit:
      raise MemoryError


def reason(error: BaseException, width: int = 100) -> str:
  """Returns why, in one line: a full disk, or the text of the error, cut."""
  if is_disk_full(error):
    return 'no space left on the disk'
  if _is_too_large(error):
    return 'file too large for the limit of this process (ulimit -f)'
  if is_out_of_memory(error):
    return 'out of memory'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= width else text[:width] + '...'


def of_machine(error: BaseException) -> str:
  """Returns what to say of an error that is the machine's, not the code's.

  Args:
    error: what ended a program.

  Returns:
    One line: what is lacking and what to lower, or which file cannot be read or
    written; '' for any other error.
  """
  if is_out_of_memory(error):
    return (
        'out of memory; lower data.batch_size (or raise optimizer.accumulate),'
        ' data.sequence_length or the size of the model, or give this process'
        ' more (ulimit -v)'
    )
  if isinstance(error, OSError):
    return f'{error.filename}: '.removeprefix('None: ') + reason(error)
  return ''


def require_finite(scores: Mapping[str, float], when: str = '') -> None:
  """Refuses held-out scores that are no numbers.

  Raises:
    FloatingPointError: one is not finite; the message ends with `when`.
  """
  for name, value in scores.items():
    if not math.isfinite(value):
      raise FloatingPointError(
          f'the held-out {name} is {value}, which the parameters or the text'
          f' make beyond all numbers{when}'
      )


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a log record is none of an error that Orbax is about to raise."""
  text = record.pathname if record.name == 'absl' else record.getMessage()
  return record.levelno < logging.ERROR or 'orbax' not in text


@contextlib.contextmanager
def logged_once() -> Iterator[None]:
  """Keeps the error of a failed read or write from being logged many times.

  Orbax reads and writes arrays concurrently and stops at the first error. Its
  threads log that one too, and asyncio logs those of all the others, moments
  later or when they are collected.
  """
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  for logger in loggers:
    logger.addFilter(_is_news)
  try:
    yield
  except Exception:
    time.sleep(0.5)
    gc.collect()
    raise
  finally:
    for logger in loggers:
      logger.removeFilter(_is_news)


def hide_abandoned_work() -> None:
  """For a program, once: what Orbax abandons at an error prints nothing.

  Python reports exceptions that nobody can catch to `sys.unraisablehook`, one
  for the process, which is no library's to change. After a failed read or write
  they are those of callbacks to a loop that is closed, and of coroutines,
  whenever those are collected. The errors of abandoned futures are logged then.
  """
  sys.unraisablehook = _report_unraisable
  logging.getLogger('asyncio').addFilter(_is_news)
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')


def _report_unraisable(unraisable) -> None:
  code = getattr(unraisable.object, 'cr_code', None)
  of_orbax = code is not None and 'orbax' in code.co_filename
  if not of_orbax and 'loop is closed' not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)
