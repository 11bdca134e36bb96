"""The training loop: everything around the step that is not mathematics.

A run that is stopped and started again gives the same numbers, bit for bit, as
one that was not: parameters, optimizer, random key and position of the data are
in the checkpoint, and nothing else decides a step.
"""

from collections.abc import Callable, Iterator
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
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.optim import factory, frequency
from hope_jax.train import checkpoint as checkpoint_lib
from hope_jax.train import losses
from hope_jax.train import metrics as metrics_lib
from hope_jax.train import state as state_lib
from hope_jax.train import step as step_lib


class Batches(Protocol):
  """An endless iterator of batches that knows its place."""

  def __next__(self) -> dict[str, Any]:
    """Returns the next batch: this process's rows of arrays [B, ...]."""

  def get_state(self) -> Any:
    """Returns the place in the data; JSON must hold it."""

  def set_state(self, state: Any) -> None:
    """Goes to a place that `get_state` gave."""


class Result(NamedTuple):
  """What a run leaves."""

  state: state_lib.TrainState
  # Records as in metrics.jsonl, those of earlier parts of the run included.
  history: list[metrics_lib.Record]
  # 'done': all steps made. 'until': that was met before. 'time': stopped by
  # train.max_seconds. Or the name of the signal that stopped it: 'SIGINT',
  # 'SIGTERM'.
  stopped: str


def level_periods(config: Config) -> tuple[int, ...]:
  """Returns the outer update periods of the model's levels; () for none."""
  has_levels = ARCHITECTURES[config.model.architecture].levels
  continuum = config.model.continuum
  return continuum.periods if has_levels and continuum.regime == 'outer' else ()


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
  with contextlib.ExitStack() as stack:
    mesh = sharding.make_mesh(config.mesh)
    stack.enter_context(jax.set_mesh(mesh))
    optimizer = factory.make_optimizer(
        config.optimizer, config.train.steps, level_periods(config)
    )
    run = _Run(config, checkpoint_step)
    stack.callback(run.close)
    state = state_lib.create(
        model, optimizer, config.data.sequence_length, config.train.seed, mesh
    )
    state = run.begin(state, batches)
    train_step = jax.jit(
        step_lib.make_train_step(
            loss_fn or losses.make_loss_fn(model),
            optimizer,
            config.optimizer.accumulate,
            factory.make_schedule(config.optimizer, config.train.steps),
        ),
        # The new state takes the old one's memory, and its place.
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
    )
    signals = stack.enter_context(_Signals())
    bar = stack.enter_context(
        tqdm.tqdm(
            total=config.train.steps,
            initial=int(state.step),
            unit='step',
            dynamic_ncols=True,
            disable=not progress or jax.process_index() != 0,
        )
    )
    stopped = 'done'
    speed = _Speed()
    pending = None
    for step in range(int(state.step) + 1, config.train.steps + 1):
      batch = sharding.put_batch(_next(batches, step))
      state, metrics = train_step(state, batch)
      # Wait for the step before this one: the device always has one step ahead
      # of it, and neither the bar nor Ctrl-C runs far ahead of the device.
      jax.block_until_ready(pending)
      pending = metrics
      bar.update()

      last = step == config.train.steps
      speed.add(metrics['tokens'])
      if step % config.train.log_every == 0 or last:
        record = {k: float(v) for k, v in jax.device_get(metrics).items()}
        _require_finite(record, step)
        record['tokens_per_second'] = speed.read()
        counts = frequency.update_counts(state.opt_state)
        record.update({f'updates/{k}': int(v) for k, v in counts.items()})
        run.write(step, 'train', record)
        bar.set_postfix_str(
            f'loss {record["loss"]:.3f},'
            f' {record["tokens_per_second"]:,.0f} tokens/s'
        )
      if evaluate and (step % config.train.eval_every == 0 or last):
        record = evaluate(state.params)
        run.write(step, 'heldout', record)
        shown = ', '.join(f'{k} {v:.4g}' for k, v in record.items())
        bar.write(f'step {step}: held out: {shown}', file=sys.stderr)
        speed.restart()
        if until and not last and until(record):
          stopped = 'until'

      limit = config.train.max_seconds
      late = limit and time.monotonic() - clock >= limit
      if signals.name:
        stopped = signals.name
      elif late and not last and stopped == 'done':
        stopped = 'time'
      due = step % config.train.checkpoint_every == 0
      if due or last or stopped != 'done':
        _require_finite(metrics, step)
        run.save(state, batches)
        speed.restart()
      if stopped != 'done':
        break
    return Result(state, run.history, stopped)


def _next(batches: Iterator, step: int) -> dict[str, Any]:
  try:
    return next(batches)
  except StopIteration:
    raise ConfigError(
        f'the training data ended before step {step}; it must be endless'
    ) from None


def _require_finite(metrics: dict[str, Any], step: int) -> None:
  loss = float(metrics['loss'])
  if not math.isfinite(loss):
    raise FloatingPointError(
        f'loss is {loss} at step {step}; checkpoints of earlier steps are kept'
    )


class _Speed:
  """Tokens a second since the last reading."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    """Starts anew, so that evaluating and saving do not count."""
    self._since, self._tokens = time.monotonic(), []

  def add(self, tokens: jax.Array) -> None:
    self._tokens.append(tokens)

  def read(self) -> float:
    total = sum(float(count) for count in self._tokens)
    speed = total / (time.monotonic() - self._since)
    self.restart()
    return speed


class _Run:
  """What a run keeps on the disk, and its history; no disk without workdir."""

  def __init__(self, config: Config, checkpoint_step: int | None):
    self.history = []
    self._config = config
    self._from = checkpoint_step
    self._writer = None
    self._checkpoints = None
    # Process 0 writes metrics; all of them write their share of a checkpoint.
    self._writes = jax.process_index() == 0
    if config.workdir:
      if self._writes:
        checkpoint_lib.claim_workdir(config)
      self._checkpoints = checkpoint_lib.Checkpoints(config)

  def begin(
      self, state: state_lib.TrainState, batches: Batches
  ) -> state_lib.TrainState:
    """Returns the state to start from, and puts the data in its place."""
    if not self._checkpoints:
      return state
    if self._from is not None or self._checkpoints.steps():
      state, place = self._checkpoints.restore(state, self._from)
      batches.set_state(place)
      if self._from is not None:
        self._checkpoints.set_aside_after(self._from)
    step = int(state.step)
    kept = metrics_lib.read(self._config.workdir)
    self.history = [record for record in kept if record['step'] <= step]
    if self._writes:
      with self._disk():
        self._writer = metrics_lib.MetricWriter(self._config.workdir, step)
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
      full = checkpoint_lib.is_disk_full(error)
      why = 'no space left on the disk' if full else str(error)
      steps = ', '.join(map(str, self._checkpoints.steps())) or 'none'
      raise ConfigError(
          f'metrics could not be written to {self._config.workdir!r}: {why};'
          f' checkpoints kept: {steps}'
      ) from error
