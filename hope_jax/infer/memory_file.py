"""A session's memory in a file, which is not trusted.

The file is a zip of NumPy arrays, as `np.savez` writes it. One of them,
'about', is JSON: where the stream stands, whose memory it is, and the name,
dtype and shape of every array. All of that is compared with what the session
expects before an array is read, and no array is read that is of another size;
nothing is unpickled, and no path in the file is used.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import json
import math
import os
from typing import IO, Any, NamedTuple
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ConfigError
from hope_jax.config.build import flat, shown
from hope_jax.files import replacing, require_file
from hope_jax.types import PyTree

_FORMAT = 2
# Bytes of 'about': names and shapes of some hundred arrays are a tenth of it.
_MOST_ABOUT = 2**20
# What our own models count, and the least that it can be: a cache of keys
# numbers its empty places -1. Counts of other models are their own affair.
_LEAST = {
    'document': -1, 'fill': 0, 'phase': 0, 'position': 0, 'segment': 0,
    'segment_ids': 0, 'tokens': 0,
}


class Memory(NamedTuple):
  """Where a stream of text stands."""

  state: PyTree  # The model's; None: a fresh memory.
  last: int  # The token read last, which the model has not been fed.
  position: int  # Tokens that it has been fed.
  seed: int  # Of the random numbers, each of which belongs to a position.
  unfinished: bytes = b''  # Of a character, at the end of the text.


class Owner(NamedTuple):
  """Whose memory it is."""

  config: dict[str, Any]  # The model's configuration.
  params: str  # SHA-256 of names, dtypes, shapes and values.
  tokenizer: str
  vocab_size: int | None  # None where the model does not say.


def owner(model: Any, params: PyTree, tokenizer: Any) -> Owner:
  """Returns what tells a model from others, parameters and tokenizer as well.

  Args:
    model: the Flax module; its `config`, if it has one, is a dataclass.
    params: its parameters.
    tokenizer: its `fingerprint`, if it has one, is a str.
  """
  config = getattr(model, 'config', None)
  values = {'model': type(model).__name__}
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    values |= json.loads(json.dumps(dataclasses.asdict(config), default=repr))
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.ascontiguousarray(leaf)
    name = jax.tree_util.keystr(path), str(array.dtype), array.shape
    digest.update(repr(name).encode())
    digest.update(array.view(np.uint8).data)
  return Owner(
      values, digest.hexdigest(), str(getattr(tokenizer, 'fingerprint', '')),
      getattr(config, 'vocab_size', None),
  )


def write(path: str, memory: Memory, whose: Owner) -> None:
  """Writes a memory, whole or not at all.

  Raises:
    ConfigError: it cannot be written there; nothing is left beside.
  """
  arrays = {
      name: np.asarray(x) for name, x in _leaves(memory.state).items()
  }
  about = {
      'format': _FORMAT,
      **{k: v for k, v in memory._asdict().items() if k != 'state'},
      'unfinished': list(memory.unfinished),
      'config': whose.config,
      'params': whose.params,
      'tokenizer': whose.tokenizer,
      'arrays': {
          name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()
      },
  }
  text = np.frombuffer(json.dumps(about).encode(), np.uint8)
  entries: dict[str, Any] = {k: _plain(x) for k, x in arrays.items()}
  try:
    with replacing(os.path.expanduser(path), 'wb') as file:
      np.savez(file, about=text, **entries)
  except (OSError, ValueError) as error:  # ValueError: NUL in a path.
    reason = getattr(error, 'strerror', None) or error
    raise ConfigError(
        f'the memory could not be written to {path!r} ({reason}); give a file'
        ' in a folder that can be written to, with room for it'
    ) from error


def read(path: str, like: Callable[[], PyTree], whose: Owner) -> Memory:
  """Reads a memory that `write` wrote.

  Args:
    path: the file.
    like: returns the shapes and dtypes of a state of the model.
    whose: whose memory it has to be.

  Returns:
    The memory, its state of NumPy arrays.

  Raises:
    ConfigError: it is no such file, it is damaged, or it is another's.
  """
  try:
    real = os.path.expanduser(path)
    require_file(real)
    with zipfile.ZipFile(real) as file:
      about = _about(file)
      _require_same(path, about, whose)
      memory = _place(about, whose.vocab_size)
      if memory.position == 0:
        _require(about['arrays'] == {}, 'a fresh memory has no arrays')
        return memory
      tree = like()
      shapes = _leaves(tree)
      _require_shapes(path, about['arrays'], shapes)
      arrays = {name: _array(file, name, s) for name, s in shapes.items()}
  except ConfigError:
    raise
  except Exception as error:  # zipfile, zlib, NumPy, json, the system raise.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise ConfigError(f'{path!r} is not a saved memory: {reason}') from error
  most = max(memory.position, (whose.vocab_size or 2**31) - 1)
  for name, array in arrays.items():
    _require_range(path, name, array, most)
  state = jax.tree_util.tree_map_with_path(
      lambda key, _: arrays[jax.tree_util.keystr(key)], tree
  )
  return memory._replace(state=state)


def _leaves(state: PyTree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): x for path, x in leaves}


def _plain(array: np.ndarray) -> np.ndarray:
  """A dtype that NumPy has no name for, such as bfloat16, as its bits."""
  if array.dtype.isbuiltin == 1:
    return array
  return array.view(f'u{array.dtype.itemsize}')


def _require(condition: bool, message: str) -> None:
  """For what only a damaged file has; `read` says which file."""
  if not condition:
    raise ValueError(message)


def _about(file: zipfile.ZipFile) -> dict[str, Any]:
  _require('about.npy' in file.namelist(), 'it says nothing of whose it is')
  with file.open('about.npy') as entry:
    dims, dtype, _ = _header(entry)
    sound = dtype == np.uint8 and len(dims) == 1 and dims[0] < _MOST_ABOUT
    _require(sound, f'its description is {dtype}{list(dims)}')
    about = json.loads(_data(entry, dims[0]))
  _require(isinstance(about, dict), 'its description is no JSON object')
  _require(about.get('format') == _FORMAT, f'it is not of format {_FORMAT}')
  return about


def _header(entry: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
  """Returns shape, dtype and whether the first axis runs fastest."""
  version = np.lib.format.read_magic(entry)
  _require(version == (1, 0), f'an array has version {version} of its format')
  dims, fortran, dtype = np.lib.format.read_array_header_1_0(entry)
  return dims, dtype, fortran


def _data(entry: IO[bytes], size: int) -> bytes:
  data = entry.read(size)
  # To its end, where the checksum is.
  _require(len(data) == size and not entry.read(1), 'an array is cut')
  return data


def _require_same(path: str, about: dict[str, Any], whose: Owner) -> None:
  found, wanted = dict(flat(about['config'])), dict(flat(whose.config))
  for name in sorted(found.keys() | wanted.keys()):
    ours, theirs = wanted.get(name, 'absent'), found.get(name, 'absent')
    if type(ours) is not type(theirs) or ours != theirs:
      raise ConfigError(
          f'{path!r} is the memory of another model: its {name} is'
          f' {shown(theirs)}, here it is {shown(ours)}'
      )
  for name, ours in (('params', whose.params), ('tokenizer', whose.tokenizer)):
    if about[name] != ours:
      words = {'params': 'parameters', 'tokenizer': 'tokenizer file'}[name]
      raise ConfigError(
          f'{path!r} is the memory of a model with other {words}; load it with'
          ' those, or feed the text again'
      )


def _place(about: dict[str, Any], vocab_size: int | None) -> Memory:
  for name, most in (
      ('last', vocab_size or 2**31), ('position', 2**31), ('seed', 2**32)
  ):
    value = about[name]
    _require(
        type(value) is int and 0 <= value < most,
        f'its {name} is {shown(value)}, and has to be in [0, {most})',
    )
  rest = about['unfinished']
  _require(
      isinstance(rest, list) and len(rest) < 4
      and all(type(x) is int and 0 <= x < 256 for x in rest),
      f'its unfinished character is {shown(rest)}',
  )
  return Memory(
      None, about['last'], about['position'], about['seed'], bytes(rest)
  )


def _require_shapes(path: str, found: Any, shapes: dict[str, Any]) -> None:
  _require(isinstance(found, dict), 'its list of arrays is no JSON object')
  for name in sorted(found.keys() | shapes.keys()):
    ours = shapes.get(name)
    wanted = None if ours is None else [str(ours.dtype), list(ours.shape)]
    if found.get(name) != wanted:
      raise ConfigError(
          f'{path!r} is the memory of another model: {name} should be'
          f' {_words(wanted)}; found {_words(found.get(name))}'
      )


def _words(entry: Any) -> str:
  return 'nothing' if entry is None else shown(entry)


def _array(file: zipfile.ZipFile, name: str, like: Any) -> np.ndarray:
  """Reads one array, once its header says what it has to."""
  plain = _plain(np.zeros((0,), like.dtype)).dtype
  with file.open(f'{name}.npy') as entry:
    dims, dtype, fortran = _header(entry)
    sound = dims == like.shape and dtype == plain
    _require(sound, f'{name} holds {dtype}{list(dims)}')
    data = bytearray(_data(entry, math.prod(dims) * plain.itemsize))
  array = np.frombuffer(data, plain)
  array = array.reshape(dims, order='F' if fortran else 'C')
  return np.ascontiguousarray(array).view(like.dtype).reshape(dims)


def _require_range(path: str, name: str, array: np.ndarray, most: int) -> None:
  """Raises a ConfigError where a number cannot be one of a state."""
  if jnp.issubdtype(array.dtype, np.inexact):
    sound, valid = np.isfinite(array), 'finite'
  else:
    # Of "['place'].position", 'position'.
    word = name.replace("']", '').replace("['", '.').rpartition('.')[2]
    least = _LEAST.get(word)
    if least is None:
      return
    sound = (array >= least) & (array <= most)
    valid = f'from {least} to {most}'
  if not np.all(sound):
    raise ConfigError(
        f'{path!r} is damaged: {name} holds {array.flat[np.argmin(sound)]}; its'
        f' numbers have to be {valid}'
    )
