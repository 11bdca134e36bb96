"""The training loop: everything around the step that is not mathematics.

A run that is stopped and started again gives the same numbers, bit for bit, as
one that was not: parameters, optimizer, random key and position of the data are
in the checkpoint, and nothing else decides a step.
"""

from collections.abc import Callable
import contextlib
import math
import signal
import sys
import threading
import time
from typing import Any, NamedTuple, Protocol

import jax
import tqdm

from hope_jax import sharding
from hope_jax.config import Config, ConfigError
from hope_jax.models.packing import require_room_for
from hope_jax.nested import levels
from hope_jax.optim import frequency
from hope_jax.train import checkpoint as checkpoint_lib
from hope_jax.train import failures, losses, setup
from hope_jax.train import metrics as metrics_lib
from hope_jax.train import state as state_lib


class Batches(Protocol):
  """An endless iterator of batches that knows its position in the data."""

  def __next__(self) -> dict[str, Any]:
    """Returns the next batch: this process's rows of arrays [B, ...]."""
    ...

  def get_state(self) -> Any:
    """Returns the position in the data; JSON must hold it."""

  def set_state(self, state: Any) -> None:
    """Goes to a position that `get_state` gave."""


class Result(NamedTuple):
  """What a run leaves."""

  state: state_lib.TrainState
  # Records as in metrics.jsonl, those of earlier parts of the run included.
  history: list[metrics_lib.Record]
  # 'done': all steps made. 'until': that was met before. 'time': stopped by
  # train.max_seconds. Or the name of the signal that stopped it: 'SIGINT',
  # 'SIGTERM'.
  stopped: str


class _Signals:
  """Notes SIGINT and SIGTERM instead of obeying them at once."""

  def __init__(self):
    self.name = ''

  def __enter__(self) -> '_Signals':
    self._before = {}
    # Python lets only the main thread handle signals.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    self.name = signal.Signals(number).name
    print(
        f'\n{self.name}: finishing this step and saving; once more to stop now',
        file=sys.stderr,
        flush=True,
    )
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __exit__(self, *_) -> None:
    self._restore()


def train(
    model: Any,
    batches: Batches,
    config: Config,
    *,
    loss_fn: losses.LossFn | None = None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    until: Callable[[dict[str, float]], bool] | None = None,
    checkpoint_step: int | None = None,
    progress: bool = True,
) -> Result:
  """Trains a model, from where its workdir left off if it has one.

  Args:
    model: a Flax module as `losses.make_loss_fn` and `state.create` take it.
    batches: the training data.
    config: the run. With an empty `workdir` nothing is written.
    loss_fn: what is minimised; None: `losses.make_loss_fn`.
    evaluate: parameters -> held-out metrics; called each `train.eval_every`
      steps and after the last one.
    until: held-out metrics -> whether training may end here, before its last
      step; None: it never may.
    checkpoint_step: go on from this checkpoint instead of the latest; later
      ones are moved to `workdir/set_aside`.
    progress: show a bar with the time left, the loss and the speed.

  Returns:
    The state at the end, the history and why it ended.

  Raises:
    ConfigError: the configuration does not fit the workdir or the devices, a
      checkpoint is damaged, or the disk is full.
    FloatingPointError: the loss is not finite.
  """
  clock = time.monotonic()
  every = config.train
  with contextlib.ExitStack() as stack:
    run = setup.make(config, model, loss_fn)
    stack.enter_context(jax.set_mesh(run.mesh))
    files = _Files(config)
    stack.callback(files.close)
    state = files.begin(run, batches, checkpoint_step)
    signals = stack.enter_context(_Signals())
    report = _Report(files, config, int(state.step), progress)
    stack.callback(report.bar.close)
    stopped, pending = 'done', None
    for step in range(int(state.step) + 1, every.steps + 1):
      batch = _next(batches, step)
      require_room_for(model, batch)
      batch = sharding.put_batch(batch)
      state, metrics = run.step(state, batch)
      # Wait for the step before this one: the device always has one step ahead
      # of it, and neither the bar nor Ctrl-C runs far ahead of the device.
      jax.block_until_ready(pending)
      pending = metrics
      report.advance(metrics)

      last = step == every.steps
      if step % every.log_every == 0 or last:
        report.log(step, metrics, state.opt_state)
      if evaluate and (step % every.eval_every == 0 or last):
        scores = evaluate(state.params)
        report.heldout(step, scores)
        if until and not last and until(scores):
          stopped = 'until'

      late = every.max_seconds and time.monotonic() - clock >= every.max_seconds
      if signals.name:
        stopped = signals.name
      elif late and not last and stopped == 'done':
        stopped = 'time'
      if step % every.checkpoint_every == 0 or last or stopped != 'done':
        _require_finite(metrics, step)
        files.save(state, batches)
        report.restart_clock()
      if stopped != 'done':
        break
    return Result(state, files.history, stopped)


def _next(batches: Batches, step: int) -> dict[str, Any]:
  try:
    return next(batches)
  except StopIteration:
    raise ConfigError(
        f'the training data ended before step {step}; it must be endless'
    ) from None


def _require_finite(metrics: dict[str, Any], step: int) -> None:
  loss = float(metrics['loss'])
  if not math.isfinite(loss):
    reason = levels.reason_for_nan(metrics)
    raise FloatingPointError(
        f'loss is {loss} at step {step}{": " if reason else ""}{reason};'
        ' checkpoints of earlier steps are kept'
    )


class _Report:
  """What is told of the steps: the bar, the records, tokens a second."""

  def __init__(self, files: '_Files', config: Config, step: int, show: bool):
    self._files = files
    self.bar = tqdm.tqdm(
        total=config.train.steps,
        initial=step,
        unit='step',
        dynamic_ncols=True,
        disable=not show or jax.process_index() != 0,
    )
    self.restart_clock()

  def restart_clock(self) -> None:
    """Counts tokens anew, so that evaluating and saving take no time."""
    self._since, self._tokens = time.monotonic(), []

  def advance(self, metrics: dict[str, Any]) -> None:
    """Counts a step."""
    self.bar.update()
    self._tokens.append(metrics['tokens'])

  def log(self, step: int, metrics: dict[str, Any], opt_state: Any) -> None:
    """Writes down the metrics of a step, and refuses what is not finite."""
    record = {k: float(v) for k, v in jax.device_get(metrics).items()}
    _require_finite(record, step)
    total = sum(float(count) for count in self._tokens)
    record['tokens_per_second'] = total / (time.monotonic() - self._since)
    self.restart_clock()
    counts = frequency.update_counts(opt_state)
    record.update({f'updates/{k}': int(v) for k, v in counts.items()})
    self._files.write(step, 'train', record)
    self.bar.set_postfix_str(
        f'loss {record["loss"]:.3f},'
        f' {record["tokens_per_second"]:,.0f} tokens/s'
    )

  def heldout(self, step: int, scores: dict[str, float]) -> None:
    """Writes down held-out metrics."""
    self._files.write(step, 'heldout', scores)
    shown = ', '.join(f'{k} {v:.4g}' for k, v in scores.items())
    self.bar.write(f'step {step}: held out: {shown}', file=sys.stderr)
    self.restart_clock()


class _Files:
  """What a run keeps on the disk, and its history; no disk without workdir."""

  def __init__(self, config: Config):
    self.history = []
    self._workdir = config.workdir
    self._writer = None
    self._checkpoints = None
    # Process 0 writes metrics; all of them write their share of a checkpoint.
    self._writes = jax.process_index() == 0
    if config.workdir:
      if self._writes:
        checkpoint_lib.claim_workdir(config)
      self._checkpoints = checkpoint_lib.Checkpoints(config)

  def begin(
      self, run: setup.Setup, batches: Batches, step: int | None
  ) -> state_lib.TrainState:
    """Returns the state to start from, and puts the data in its place.

    Args:
      run: makes the state of a run that has no checkpoint.
      batches: the data.
      step: of the checkpoint to go on from; None: the latest, if any.
    """
    if not self._checkpoints:
      return run.create()
    if step is None and not self._checkpoints.steps():
      state = run.create()
    else:
      state, position = self._checkpoints.restore(run.shapes, step)
      batches.set_state(position)
      if step is not None:
        self._checkpoints.set_aside_after(step)
    made = int(state.step)
    kept = metrics_lib.read(self._workdir)
    self.history = [record for record in kept if record['step'] <= made]
    if self._writes:
      with self._disk():
        self._writer = metrics_lib.MetricWriter(self._workdir, made)
    return state

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Adds a record to the history and to the files."""
    record = {'step': step, 'split': split, **values}
    self.history.append(record)
    if self._writer:
      with self._disk():
        self._writer.write(record)

  def save(self, state: state_lib.TrainState, batches: Batches) -> None:
    """Writes a checkpoint, unless there is one of this step."""
    if not self._checkpoints or int(state.step) in self._checkpoints.steps():
      return
    if self._writer:
      # First the metrics: a checkpoint promises the records up to its step.
      with self._disk():
        self._writer.flush()
    self._checkpoints.save(state, batches.get_state())

  def close(self) -> None:
    """Lets go of all files."""
    if self._writer:
      # What matters has been flushed; a full disk was reported by then.
      with contextlib.suppress(OSError):
        self._writer.close()
    if self._checkpoints:
      self._checkpoints.close()

  @contextlib.contextmanager
  def _disk(self):
    try:
      yield
    except OSError as error:
      steps = self._checkpoints.steps() if self._checkpoints else []
      raise ConfigError(
          f'metrics could not be written to {self._workdir!r}:'
          f' {failures.reason(error)}; checkpoints kept:'
          f' {", ".join(map(str, steps)) or "none"}'
      ) from error
