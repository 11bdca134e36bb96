"""Checkpoints: written whole or not at all, and never trusted blindly.

A checkpoint is `workdir/checkpoints/STEP`, written under another name and then
renamed, so that one that is there is complete. It holds the parameters, the
rest of the train state, a record of the run (see `record.py`), and a checksum
of every array: the storage format notices a missing part, but returns other
numbers for a flipped bit.

A workdir belongs to one configuration, kept in `workdir/config.json`. To go on
with another is refused, apart from what may change within a run:
`mesh` (where arrays live, not what they are), `workdir`, and all of `train` but
its seed. `train.steps` is among them so that a run can be made longer; the
learning rate then follows the schedule of the new length from there on.
"""

from collections.abc import Callable
import json
import os
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from hope_jax import config as config_lib
from hope_jax.config import Config, ConfigError
from hope_jax.files import (
  Lock,
  LockedError,
  replacing,
  require_file,
  unfinished,
)
from hope_jax.train import failures
from hope_jax.train import record as record_lib
from hope_jax.train.state import TrainState
from hope_jax.types import Array, PyTree

_CONFIG = 'config.json'
# What Orbax writes a checkpoint under before it renames it.
_UNFINISHED = '.orbax-checkpoint-tmp'


def _may_change(field: str) -> bool:
  if field == 'train.seed':
    return False
  return field == 'workdir' or field.split('.')[0] in ('mesh', 'train')


def load_config(workdir: str) -> Config:
  """Returns the configuration that a workdir belongs to.

  Raises:
    ConfigError: there is none, or it cannot be read.
  """
  path = os.path.join(workdir, _CONFIG)
  try:
    require_file(path)
    with open(path, encoding='utf-8') as file:
      values = json.load(file)
  except FileNotFoundError as error:
    raise ConfigError(
        f'no run in workdir {workdir!r}: {path} does not exist'
    ) from error
  except (OSError, RecursionError, ValueError) as error:
    raise ConfigError(f'{path} cannot be read: {error}') from error
  return config_lib.from_dict(values)


def require_same(
    config: Config, may_change: Callable[[str], bool] = _may_change
) -> None:
  """Refuses a configuration that its workdir does not belong to.

  Args:
    config: the configuration of this run.
    may_change: whether a field, e.g. 'train.steps', may differ.

  Raises:
    ConfigError: another field differs.
  """
  there, here = map(config_lib.to_dict, (load_config(config.workdir), config))
  differing = [
      f'{field} is {a} there and {b} here'
      for field, a, b in record_lib.differences(there, here)
      if not may_change(field)
  ]
  if differing:
    raise ConfigError(
        f'workdir {config.workdir!r} holds a run of another config:'
        f' {"; ".join(differing)}; choose another --workdir'
    )


def lock_workdir(workdir: str) -> Lock:
  """Makes a workdir where there is none, and keeps other writers out of it.

  Raises:
    ConfigError: another program writes to it, or it cannot be written to.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    return Lock(os.path.join(workdir, '.lock'))
  except LockedError as error:
    raise ConfigError(
        f'workdir {workdir!r} is being written to by {error}; wait until it'
        ' ends, or choose another --workdir'
    ) from error
  except OSError as error:
    raise _cannot_write(workdir, error) from error


def _cannot_write(workdir: str, error: OSError) -> ConfigError:
  return ConfigError(
      f'cannot write to workdir {workdir!r}: {failures.reason(error)}'
  )


def claim_workdir(config: Config) -> None:
  """Makes `config.workdir` this configuration's, or refuses.

  Raises:
    ConfigError: the workdir holds a run of another configuration, or cannot be
      written to.
  """
  workdir = config.workdir
  path = os.path.join(workdir, _CONFIG)
  run = [os.path.join(workdir, n) for n in ('checkpoints', 'metrics.jsonl')]
  # Without either, an earlier start failed before it had anything to lose.
  if any(os.path.exists(name) for name in run):
    require_same(config)
  try:
    os.makedirs(workdir, exist_ok=True)
    with replacing(path) as file:
      json.dump(config_lib.to_dict(config), file, indent=2)
  except OSError as error:
    raise _cannot_write(workdir, error) from error


def _checksum(x: Array) -> Array:
  """Returns a uint32 that any change of one byte of `x` changes.

  The sum of all bytes, each times an odd number of its own, modulo 2^32: exact,
  in any order, so the same however the array is spread over devices.
  """
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  octets = jax.lax.bitcast_convert_type(x, jnp.uint8).astype(jnp.uint32)
  index, stride = jnp.zeros(octets.shape, jnp.uint32), 1
  for axis in reversed(range(octets.ndim)):
    i = jax.lax.broadcasted_iota(jnp.uint32, octets.shape, axis)
    index += i * jnp.uint32(stride)
    stride = stride * octets.shape[axis] % 2**32
  return jnp.sum(octets * (2 * index + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(tree: PyTree) -> list[Array]:
  return [_checksum(leaf) for leaf in jax.tree.leaves(tree)]


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, config: Config):
    """Opens `config.workdir`; nothing is written before the first save."""
    self._config = config
    self._workdir = config.workdir
    self._path = os.path.abspath(os.path.join(config.workdir, 'checkpoints'))
    # Made at the first save: opening a manager creates its folder.
    self._opened = None

  def _manager(self) -> ocp.CheckpointManager:
    if self._opened is None:
      self._opened = ocp.CheckpointManager(
          self._path,
          options=ocp.CheckpointManagerOptions(
              max_to_keep=self._config.train.keep_checkpoints,
              # Synchronous: when `save` returns the step is on the disk, and
              # the loop may hand its arrays to the next step.
              enable_async_checkpointing=False,
          ),
      )
    return self._opened

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, in order."""
    if not os.path.isdir(self._path):
      return []
    # What else is there is its user's.
    return sorted(
        int(name) for name in os.listdir(self._path)
        if re.fullmatch('0|[1-9][0-9]*', name)
        and os.path.isdir(os.path.join(self._path, name))
    )

  def save(self, state: TrainState, data_state: Any) -> None:
    """Writes the checkpoint of `state.step`, and drops the oldest.

    Args:
      state: the train state.
      data_state: what `get_state` of this process's data gave; JSON must hold
        it.

    Raises:
      ConfigError: it could not be written; earlier ones are as they were.
    """
    step = int(state.step)
    rest = _rest(state)
    about = record_lib.make(self._config, step, data_state, {
        'params': _sums(state.params), 'rest': _sums(rest),
    })
    path = f'{self._path}/{step}{_UNFINISHED}'
    try:
      with failures.logged_once(), unfinished(path):
        self._manager().save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(rest),
                about=ocp.args.JsonSave(about),
            ),
        )
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      kept = ', '.join(map(str, self.steps())) or 'none'
      raise ConfigError(
          f'checkpoint of step {step} could not be written to'
          f' {self._workdir!r}: {failures.reason(error)}; checkpoints kept:'
          f' {kept}'
      ) from error

  def remove_unfinished(self) -> None:
    """Removes what a run that was killed while it saved has left."""
    names = os.listdir(self._path) if os.path.isdir(self._path) else []
    for name in names:
      if re.fullmatch(rf'\d+{re.escape(_UNFINISHED)}(-\d+)?', name):
        shutil.rmtree(os.path.join(self._path, name), ignore_errors=True)

  def restore(
      self, like: TrainState, step: int | None = None
  ) -> tuple[TrainState, Any]:
    """Reads a checkpoint.

    Args:
      like: a state of the same structure, shapes and shardings; the devices may
        be others than those it was written from.
      step: which one; the latest by default.

    Returns:
      The train state, bit for bit, and the state of this process's data.

    Raises:
      ConfigError: there is none, it is damaged, it is of another configuration,
        or other processes than these wrote it.
    """
    read = self._read(step, params=like.params, rest=_rest(like))
    there, here = len(read.about['data']), jax.process_count()
    if there != here:
      raise ConfigError(
          f'the run in {self._workdir!r} was saved by {there} process(es), each'
          f' with its part of the data, and cannot go on with {here}'
      )
    state = TrainState(params=read.params, **read.rest)
    return state, read.about['data'][jax.process_index()]

  def restore_params(self, like: PyTree, step: int | None = None) -> PyTree:
    """Reads only the parameters; see `restore`."""
    return self._read(step, params=like).params

  def set_aside_after(self, step: int) -> None:
    """Moves checkpoints later than `step` to `workdir/set_aside`."""
    for later in (s for s in self.steps() if s > step):
      target = os.path.join(self._workdir, 'set_aside', str(later))
      while os.path.exists(target):
        target += '_'
      os.makedirs(os.path.dirname(target), exist_ok=True)
      os.rename(os.path.join(self._path, str(later)), target)
    self.close()

  def close(self) -> None:
    """Lets go of the folder."""
    if self._opened is not None:
      self._opened.close()
      self._opened = None

  def _read(self, step: int | None, **items: PyTree) -> ocp.args.Composite:
    steps = self.steps()
    if step is None and steps:
      step = steps[-1]
    if step not in steps:
      which = '' if step is None else f' of step {step}'
      there = ', '.join(map(str, steps)) or 'none'
      raise ConfigError(
          f'no checkpoint{which} in {self._workdir!r}; there are: {there}'
      )
    about = self._restore(step, steps, about=ocp.args.JsonRestore()).about
    self._require_recorded(about['config'], step)
    args = {
        name: ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        for name, like in items.items()
    }
    return self._restore(step, steps, about=ocp.args.JsonRestore(), **args)

  def _restore(self, step: int, steps: list[int], **args: Any) -> Any:
    """Reads parts of a checkpoint, if they are as they were written."""
    try:
      with failures.logged_once():
        read: Any = self._manager().restore(
            step, args=ocp.args.Composite(**args)
        )
      record_lib.require_whole(read.about, step)
      for name in args.keys() - {'about'}:
        if _sums(read[name]) != read.about['checksums'][name]:
          raise ValueError(f'the numbers of {name!r} are not those written')
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      older = [s for s in steps if s < step]
      way = (
          f'to go on from an older one add --checkpoint_step={older[-1]}'
          if older
          else 'there is no older one'
      )
      raise ConfigError(
          f'checkpoint {os.path.join(self._workdir, "checkpoints", str(step))}'
          f' is damaged ({failures.reason(error)}); {way}'
      ) from error
    return read

  def _require_recorded(self, values: dict[str, Any], step: int) -> None:
    """Refuses a config.json that is not what the checkpoint was made with."""
    path = os.path.join(self._workdir, _CONFIG)
    here = load_config(self._workdir) if os.path.exists(path) else self._config
    differences = record_lib.differences(values, config_lib.to_dict(here))
    # What only one of them has is of another version of this package, or an
    # option of the optimizer.
    differing = [
        f'{field} is {a} in checkpoint {step} and {b} in {path}'
        for field, a, b in differences
        if not _may_change(field)
        and ('not given' not in (a, b) or field.startswith('optimizer.options'))
    ]
    if differing:
      raise ConfigError(
          f'{"; ".join(differing)}: that file was changed after training; put'
          ' back what the checkpoint was made with'
      )


def _sums(tree: PyTree) -> list[int]:
  return [int(c) for c in _checksums(tree)]


def _rest(state: TrainState) -> dict[str, PyTree]:
  """Returns all but the parameters, which can then be read on their own."""
  rest = state._asdict()
  del rest['params']
  return rest


def _abstract(x: Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
