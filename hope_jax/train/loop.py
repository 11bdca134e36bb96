"""The training loop: everything around the step that is not mathematics.

A run that is stopped and started again gives the same numbers, bit for bit, as
one that was not: parameters, optimizer, random key and position of the data are
in the checkpoint, and nothing else decides a step.
"""

from collections.abc import Callable
import contextlib
import math
import time
from typing import Any, NamedTuple, Protocol

import jax
import tqdm

from hope_jax import console, interrupts, sharding
from hope_jax.config import Config, ConfigError
from hope_jax.models.packing import require_room_for
from hope_jax.nested import levels
from hope_jax.optim import frequency
from hope_jax.train import checkpoint as checkpoint_lib
from hope_jax.train import failures, losses, setup
from hope_jax.train import metrics as metrics_lib
from hope_jax.train import record as record_lib
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
  # 'SIGTERM', 'SIGHUP'.
  stopped: str


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
    MemoryError: this process may not map what the run takes.
    ConfigError: the configuration does not fit the workdir or the devices,
      another program writes there, a checkpoint is damaged, the disk is full.
    FloatingPointError: the loss, the gradient, the update or a held-out metric
      is not finite, and `train.not_finite` is 'stop'.
  """
  clock = time.monotonic()
  every = config.train
  with contextlib.ExitStack() as stack:
    run = setup.make(config, model, loss_fn)
    failures.require_memory(jax.tree.leaves(run.shapes))
    stack.enter_context(jax.set_mesh(run.mesh))
    files = _Files(config)
    stack.callback(files.close)
    state = files.begin(run, batches, checkpoint_step)
    signals = stack.enter_context(interrupts.Noted())
    report = _Report(files, config, state, progress)
    stack.callback(report.bar.close)
    stopped = 'done'
    for step in range(int(state.step) + 1, every.steps + 1):
      batch = _next(batches, step)
      require_room_for(model, batch)
      batch = sharding.put_batch(batch)
      state, metrics = run.step(state, batch)
      report.advance(step, metrics)

      last = step == every.steps
      if step % every.log_every == 0 or last:
        report.log(step, metrics, state.opt_state)
      if evaluate and (step % every.eval_every == 0 or last):
        report.settle()  # Numbers that are none are not worth a held-out text.
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
        report.settle()
        files.save(state, batches)
        report.restart_clock()
        if stopped == 'done' and not last:
          stopped = signals.name or stopped  # While it was saved.
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


# What is not finite in a step that went wrong, the first that says so first.
_WATCHED = {
    'loss': 'loss',
    'grad_norm': 'the norm of the gradient',
    'update_norm': 'the norm of the update',
    'param_norm': 'the norm of the parameters',
}


def _fault(metrics: dict[str, Any]) -> str:
  """Returns what in the metrics of a step is not finite, and why, if known."""
  values = jax.device_get([metrics[name] for name in _WATCHED])
  for name, value in zip(_WATCHED.values(), values):
    if not math.isfinite(value):
      reason = levels.reason_for_nan(metrics)
      return f'{name} is {value}' + (f' ({reason})' if reason else '')
  return ''


class _Report:
  """What is told of the steps: the bar, the records, tokens a second.

  And whether they went well: each step is looked at before anything is made of
  it, and at the latest when the next one has been given to the device.
  """

  # Seconds between two states of the bar, where no terminal draws over it.
  RARELY = 30.0

  def __init__(
      self,
      files: '_Files',
      config: Config,
      state: state_lib.TrainState,
      show: bool,
  ):
    self._files = files
    self._skips = config.train.not_finite == 'skip'
    self._skipped = sum(r['split'] == 'skipped' for r in files.history)
    self._pending = None
    self._terminal = console.stderr.isatty()
    pause = 0.1 if self._terminal else self.RARELY
    self.bar = tqdm.tqdm(
        total=config.train.steps,
        initial=int(state.step),
        unit='step',
        file=console.stderr,
        mininterval=pause,
        maxinterval=max(pause, 10.0),
        dynamic_ncols=True,
        disable=not show or jax.process_index() != 0,
    )
    self.restart_clock()

  def restart_clock(self) -> None:
    """Counts tokens anew, so that evaluating and saving take no time."""
    self._since, self._tokens = time.monotonic(), []

  def advance(self, step: int, metrics: dict[str, Any]) -> None:
    """Counts a step, and waits for the one before it.

    The device always has one step ahead of it, and neither the bar nor Ctrl-C
    runs far ahead of the device.
    """
    self.settle()
    self._pending = step, metrics
    self.bar.update()

  def settle(self) -> bool:
    """Waits for the last step, and returns whether it was not skipped.

    Raises:
      FloatingPointError: it is not finite, and the run stops at that.
    """
    if self._pending is None:
      return True
    (step, metrics), self._pending = self._pending, None
    fault = _fault(metrics)
    if fault and not self._skips:
      raise FloatingPointError(
          f'{fault} at step {step}; checkpoints of earlier steps are kept.'
          ' --config.train.not_finite=skip leaves such a step out'
      )
    if fault:
      self._skipped += 1
      self._files.write(step, 'skipped', {'total': self._skipped})
      self.bar.write(f'step {step}: skipped: {fault}', file=console.stderr)
    else:
      self._tokens.append(metrics['tokens'])
    return not fault

  def log(self, step: int, metrics: dict[str, Any], opt_state: Any) -> None:
    """Writes down the metrics of a step, unless it was skipped."""
    if not self.settle():
      return
    record = {k: float(v) for k, v in jax.device_get(metrics).items()}
    total = sum(float(count) for count in self._tokens)
    record['tokens_per_second'] = total / (time.monotonic() - self._since)
    self.restart_clock()
    counts = frequency.update_counts(opt_state)
    record.update({f'updates/{k}': int(v) for k, v in counts.items()})
    self._files.write(step, 'train', record)
    self.bar.set_postfix_str(
        f'loss {record["loss"]:.3f},'
        f' {record["tokens_per_second"]:,.0f} tokens/s',
        refresh=self._terminal,
    )

  def heldout(self, step: int, scores: dict[str, float]) -> None:
    """Writes down held-out metrics.

    Raises:
      FloatingPointError: one is not finite, and the run stops at that.
    """
    if not self._skips:
      failures.require_finite(
          scores, f' at step {step}; checkpoints of earlier steps are kept'
      )
    self._files.write(step, 'heldout', scores)
    shown = ', '.join(f'{k} {v:.4g}' for k, v in scores.items())
    self.bar.write(f'step {step}: held out: {shown}', file=console.stderr)
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
    self._lock = None
    if config.workdir:
      if self._writes:
        self._lock = checkpoint_lib.lock_workdir(config.workdir)
        try:
          checkpoint_lib.claim_workdir(config)
        except BaseException:
          self._lock.release()
          raise
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
    if self._writes:
      self._checkpoints.remove_unfinished()
    if step is None and not self._checkpoints.steps():
      state = run.create()
    else:
      state, position = self._checkpoints.restore(run.shapes, step)
      self._go_to(batches, position, int(state.step))
      if step is not None:
        self._checkpoints.set_aside_after(step)
    made = int(state.step)
    with self._disk():
      kept, others = metrics_lib.read_and_count(self._workdir)
      self.history = [record for record in kept if record['step'] <= made]
      if self._writes:
        self._writer = metrics_lib.MetricWriter(self._workdir, made)
    if others and self._writes:
      console.say(
          f'{self._workdir}/metrics.jsonl: lines that are no record of a step'
          f' are left out: {others}'
      )
    return state

  def _go_to(self, batches: Batches, position: Any, step: int) -> None:
    try:
      record_lib.require_place(position, like=batches.get_state())
      batches.set_state(position)
    except (LookupError, TypeError, ValueError) as error:
      raise ConfigError(
          f'checkpoint {step} in {self._workdir!r} holds no place in this data'
          f' ({failures.reason(error)}); to go on from an older one add'
          ' --checkpoint_step=STEP'
      ) from error

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
    if self._lock:
      self._lock.release()

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
