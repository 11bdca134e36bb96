"""What is said of a read or a write that failed: one line, and why."""

from collections.abc import Iterator
import contextlib
import errno
import gc
import logging
import sys
import time


def is_disk_full(error: BaseException | None) -> bool:
  """Returns whether an error, or one that led to it, is a full disk."""
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    text = str(error)
    if 'No space left' in text or 'quota exceeded' in text:
      return True
    error = error.__cause__ or error.__context__
  return False


def reason(error: BaseException, width: int = 100) -> str:
  """Returns why, in one line: a full disk, or the text of the error, cut."""
  if is_disk_full(error):
    return 'no space left on the disk'
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= width else text[:width] + '...'


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
  whenever those are collected.
  """
  sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable) -> None:
  code = getattr(unraisable.object, 'cr_code', None)
  of_orbax = code is not None and 'orbax' in code.co_filename
  if not of_orbax and 'loop is closed' not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)
