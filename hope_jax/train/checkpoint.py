"""Checkpoints: written whole or not at all, and never trusted blindly.

A checkpoint is `workdir/checkpoints/STEP`, written under another name and then
renamed, so that one that is there is complete. It holds the parameters, the
rest of the train state, each process's position in the data, the config, the
versions of the libraries, and a checksum of every array: the storage format
notices a missing part, but returns other numbers for a flipped bit.

A workdir belongs to one configuration, kept in `workdir/config.json`. To go on
with another is refused, apart from what may change within a run:
`mesh` (where arrays live, not what they are), `workdir`, and all of `train` but
its seed. `train.steps` is among them so that a run can be made longer; the
learning rate then follows the schedule of the new length from there on.
"""

from collections.abc import Callable, Iterator
import importlib.metadata
import json
import os
import platform
import shutil
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from hope_jax import config as config_lib
from hope_jax.config import Config, ConfigError
from hope_jax.files import replacing
from hope_jax.train import failures
from hope_jax.train.state import TrainState
from hope_jax.types import Array, PyTree

_CONFIG = 'config.json'
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def _may_change(field: str) -> bool:
  if field == 'train.seed':
    return False
  return field == 'workdir' or field.split('.')[0] in ('mesh', 'train')


def _flat(values: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    where = f'{path}.{name}' if path else name
    if isinstance(value, dict):
      yield from _flat(value, where)
    else:
      yield where, value


def _show(values: dict[str, Any], field: str) -> str:
  """A value for people, also of a field that only another run has."""
  return repr(values[field]) if field in values else 'not given'


def load_config(workdir: str) -> Config:
  """Returns the configuration that a workdir belongs to.

  Raises:
    ConfigError: there is none, or it cannot be read.
  """
  path = os.path.join(workdir, _CONFIG)
  try:
    with open(path, encoding='utf-8') as file:
      values = json.load(file)
  except FileNotFoundError as error:
    raise ConfigError(
        f'no run in workdir {workdir!r}: {path} does not exist'
    ) from error
  except (OSError, ValueError) as error:
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
  there = dict(_flat(config_lib.to_dict(load_config(config.workdir))))
  here = dict(_flat(config_lib.to_dict(config)))
  differing = [
      f'{field} is {_show(there, field)} there and {_show(here, field)} here'
      for field in here | there
      if _show(here, field) != _show(there, field) and not may_change(field)
  ]
  if differing:
    raise ConfigError(
        f'workdir {config.workdir!r} holds a run of another config:'
        f' {"; ".join(differing)}; choose another --workdir'
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
    raise ConfigError(
        f'cannot write to workdir {workdir!r}: {error.strerror}'
    ) from error


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


def _versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for name in _LIBRARIES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


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
    return sorted(int(n) for n in os.listdir(self._path) if n.isdigit())

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
    about = {
        'config': config_lib.to_dict(self._config),
        'versions': _versions(),
        # The state of the data of each process.
        'processes': jax.process_count(),
        'data': _of_each_process(data_state),
        'checksums': {
            'params': [int(c) for c in _checksums(state.params)],
            'rest': [int(c) for c in _checksums(rest)],
        },
    }
    try:
      with failures.logged_once():
        self._manager().save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(rest),
                about=ocp.args.JsonSave(about),
            ),
        )
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      self._remove_unfinished()
      kept = ', '.join(map(str, self.steps())) or 'none'
      raise ConfigError(
          f'checkpoint of step {step} could not be written to'
          f' {self._workdir!r}: {failures.reason(error)}; checkpoints kept:'
          f' {kept}'
      ) from error

  def _remove_unfinished(self) -> None:
    # Orbax writes several parts at once: while one of them fails, others may
    # still be adding files to what is removed here.
    for _ in range(50):
      names = os.listdir(self._path) if os.path.isdir(self._path) else []
      unfinished = [name for name in names if not name.isdigit()]
      if not unfinished:
        return
      for name in unfinished:
        shutil.rmtree(os.path.join(self._path, name), ignore_errors=True)
      time.sleep(0.1)

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
      ConfigError: there is none, it is damaged, or other processes than these
        wrote it.
    """
    read = self._read(step, params=like.params, rest=_rest(like))
    # Records of the time before there could be several do not say.
    there, here = read.about.get('processes', 1), jax.process_count()
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
    args = {
        name: ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        for name, like in items.items()
    }
    try:
      with failures.logged_once():
        read: Any = self._manager().restore(
            step,
            args=ocp.args.Composite(about=ocp.args.JsonRestore(), **args),
        )
      for name in items:
        sums = [int(c) for c in _checksums(read[name])]
        if sums != read.about['checksums'][name]:
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


def _of_each_process(value: Any) -> list[Any]:
  """Returns the values of all processes; JSON must hold them."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  # Arrays that are gathered have one shape.
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  padded = np.pad(text, (0, sizes.max() - text.size))
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def _rest(state: TrainState) -> dict[str, PyTree]:
  """Returns all but the parameters, which can then be read on their own."""
  rest = state._asdict()
  del rest['params']
  return rest


def _abstract(x: Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
