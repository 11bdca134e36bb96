"""What a checkpoint says of itself, beside its arrays: a record in JSON.

The configuration, the versions of the libraries, the step, and where each
process is in its data; and checksums, as a changed digit is a number like any
other: going on from a wrong place in the data would look like any run.
"""

from collections.abc import Iterator, Mapping
import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from hope_jax import config as config_lib
from hope_jax.config import Config
from hope_jax.config.build import flat, shown

Record = dict[str, Any]

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
# Above all counts of documents, tokens and rows; JSON knows no more digits.
_MOST = 2**53
# What the checksum of the record is of.
_SUMMED = ('step', 'config', 'versions', 'data')


def make(
    config: Config, step: int, data_state: Any, checksums: dict[str, list[int]]
) -> Record:
  """Returns the record of a checkpoint.

  Args:
    config: the run.
    step: steps made.
    data_state: the state of this process's data; JSON must hold it.
    checksums: of the arrays, by the name of their part of the checkpoint.
  """
  record = {
      'step': step,
      'config': config_lib.to_dict(config),
      'versions': _versions(),
      'processes': jax.process_count(),
      'data': _of_each_process(data_state),
  }
  return record | {'checksums': checksums | {'record': _digest(record)}}


def require_whole(record: Record, step: int) -> None:
  """Refuses a record that is not what `make` gave.

  Raises:
    ValueError: it was changed, or is of another step.
  """
  data = record['data']
  # Records of the time before there could be several do not say.
  count = record.get('processes', 1)
  if not isinstance(data, list) or len(data) != count:
    raise ValueError(f'the record holds the data of other than {count!r}')
  if record.get('step', step) != step:
    raise ValueError(f'the record is that of step {record["step"]!r}')
  # Nor did they have a checksum, or a step.
  sums = record['checksums']
  if ('record' in sums or 'step' in record) and (
      sums.get('record') != _digest(record)
  ):
    raise ValueError('the record is not the one written')


def require_place(found: Any, like: Any) -> None:
  """Refuses what is no place in the data.

  Args:
    found: what a record says.
    like: the state of the data at its beginning. Where it has a count, 0 or
      more, there has to be one; what it has not may be anything.

  Raises:
    ValueError: something in it is of another kind, or out of range.
  """
  if isinstance(like, dict) and isinstance(found, dict):
    for name in like.keys() & found.keys():
      require_place(found[name], like[name])
  elif isinstance(like, list) and isinstance(found, list):
    for one, other in zip(found, like):
      require_place(one, other)
  elif type(like) is int and like >= 0:
    if type(found) is not int or not 0 <= found < _MOST:
      raise ValueError(f'a count is {shown(found)}')
  elif isinstance(like, (dict, list)):
    raise ValueError(f'{shown(found)} is there for {type(like).__name__}')


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
  """Yields the fields that differ: dotted name, and both values for people.

  Args:
    there: a configuration as `config.to_dict` gives it.
    here: another one.
  """
  left, right = dict(flat(there)), dict(flat(here))
  for field in right | left:
    a, b = _show(left, field), _show(right, field)
    if a != b:
      yield field, a, b


def _show(values: Mapping[str, Any], field: str) -> str:
  """A value for people, also of a field that only another run has."""
  if field not in values:
    return 'not given'
  value = values[field]
  # JSON has lists only.
  return repr(tuple(value) if isinstance(value, list) else value)


def _digest(record: Record) -> str:
  part = {name: record[name] for name in _SUMMED if name in record}
  # As it is read back: tuples are lists, and names are text.
  plain = json.loads(json.dumps(part))
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for name in _LIBRARIES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


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
