"""Signals that ask a run to stop: Ctrl-C, SIGTERM, a terminal that hangs up.

A program stops at once, in one line; training notes the first one, and stops
once it has saved. No exception is raised into other libraries' threads and
compilers: in the middle of them it ends in their traces, or in a crash.
"""

import contextlib
import os
import signal
import sys
import threading
import types

from hope_jax import console, files

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
  """A signal has stopped what can be taken up again; its name is `args[0]`."""


def exit_code(name: str) -> int:
  """Returns the exit code of a program that a signal stopped, as in shells."""
  return 128 + signal.Signals[name]


def _handled() -> list[signal.Signals]:
  # `nohup` switches SIGHUP off, and it stays so.
  return [
      number for number in _SIGNALS
      if number is not signal.SIGHUP
      or signal.getsignal(number) is not signal.SIG_IGN
  ]


def stop_at_once() -> None:
  """For a program, once: a signal ends it in one line, with nothing half done.

  The process ends where it is: what a file is being written to is removed, and
  nothing else is taken down. Python's own way, an exception and a slow end,
  crashes where XLA is compiling in a thread.
  """
  for number in _handled():
    signal.signal(number, _stop)


def _stop(number: int, frame: types.FrameType | None) -> None:
  del frame
  name = signal.Signals(number).name
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  console.say(f'{name}: stopped; nothing more is saved')
  files.remove_unfinished()
  os._exit(exit_code(name))


class Noted:
  """Notes signals, once each run, instead of obeying them at once.

  The second one is obeyed as it would have been outside. `name` is that of the
  first, '' before.
  """

  def __init__(self):
    self.name = ''

  def __enter__(self) -> 'Noted':
    self._before = {}
    # Python lets only the main thread handle signals.
    if threading.current_thread() is threading.main_thread():
      for number in _handled():
        self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    if self.name:
      console.say('')  # Ends the line of the progress bar.
      self._restore()
      signal.raise_signal(number)
      return
    self.name = signal.Signals(number).name
    console.say(
        f'\n{self.name}: stopping once this step is made and saved; once more'
        ' to stop now'
    )

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __exit__(self, *_) -> None:
    self._restore()
