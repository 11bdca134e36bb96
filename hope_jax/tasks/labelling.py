"""Examples to arrays, and arrays to batches.

A split of a task is a dict of arrays with one row an example:

| name    | shape and dtype       | what                                     |
|---------|-----------------------|------------------------------------------|
| tokens  | [N, T] int32          | what is read                             |
| targets | [N, T] int32, or      | the right answer at each position: a     |
|         | [N, T, S] float32     | token, or a set of S symbols as 0 and 1  |
| mask    | [N, T] float32        | 1 where an answer is asked for           |

Rows are padded at their end, where the mask is 0. No model looks ahead, so
padding needs no further mark. Where a row holds several texts, `segment_ids`,
[N, T] int32, numbers them from 1, and no text sees those before it; 0 is
padding. Where few answers are asked for, `positions`, [N, A] int32, says where;
targets and mask are of these alone, [N, A, ...]. Where an answer has parts that
count by themselves, `parts`, [N, T] (or [N, A]) int32, numbers them from 1.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Encoded(NamedTuple):
  """Splits of labelled strings as arrays, and what their numbers mean."""

  splits: dict[str, Arrays]
  symbols: tuple[str, ...]  # by token
  names: tuple[str, ...]  # by last axis of the targets


def encode(splits: dict[str, list]) -> Encoded:
  """Numbers symbols, in alphabetical order.

  Args:
    splits: split -> `formal_languages.Example`s, 'train' among them.

  Raises:
    ValueError: a split asks for what is never trained.
  """
  found = {
      split: (
          {s for e in examples for s in e.symbols},
          {s for e in examples for legal in e.legal for s in legal},
      )
      for split, examples in splits.items()
  }
  for split, kinds in found.items():
    for kind, have, known in zip(('symbol', 'target'), kinds, found['train']):
      if have - known:
        raise ValueError(
            f'{split!r} must hold what is trained on; its {kind}'
            f' {min(have - known)!r} is not in the training strings'
        )
  symbols, names = (tuple(sorted(kind)) for kind in found['train'])
  return Encoded(
      {k: _arrays(v, symbols, names) for k, v in splits.items()},
      symbols, names,
  )


def _arrays(examples, symbols, names) -> Arrays:
  shape = len(examples), max(len(e.symbols) for e in examples)
  token = {s: i for i, s in enumerate(symbols)}
  arrays = {
      'tokens': np.zeros(shape, np.int32),
      'targets': np.zeros((*shape, len(names)), np.float32),
      'mask': np.zeros(shape, np.float32),
  }
  row = {
      legal: np.array([name in legal for name in names], np.float32)
      for legal in {legal for e in examples for legal in e.legal}
  }
  for i, example in enumerate(examples):
    size = len(example.symbols)
    arrays['tokens'][i, :size] = [token[s] for s in example.symbols]
    arrays['targets'][i, :size] = [row[legal] for legal in example.legal]
    arrays['mask'][i, :size] = 1
  return arrays


def at_positions(arrays: Arrays) -> Arrays:
  """Keeps targets where a row asks for answers, and says where in `positions`.

  What a model says elsewhere is then not computed: most of the work where the
  vocabulary is large. Rows that ask for less than others are filled up with
  positions whose mask is 0.
  """
  most = int(np.max(np.sum(arrays['mask'] > 0, axis=1)))
  positions = np.argsort(arrays['mask'] <= 0, axis=1, kind='stable')[:, :most]
  rows = np.arange(len(positions))[:, None]
  kept = {
      name: arrays[name][rows, positions]
      for name in ('targets', 'mask', 'parts')
      if name in arrays
  }
  return arrays | kept | {'positions': positions.astype(np.int32)}


class Epochs:
  """An endless iterator of training batches: every epoch in a new order."""

  def __init__(self, arrays: Arrays, batch_size: int, seed: int):
    self._arrays, self._size, self._seed = arrays, batch_size, seed
    self._rows = len(arrays['tokens'])
    if batch_size > self._rows:
      raise ValueError(
          f'batch_size must be at most the {self._rows} examples; got'
          f' {batch_size}'
      )
    self._step = 0

  def __iter__(self) -> 'Epochs':
    return self

  def __next__(self) -> Arrays:
    epoch, step = divmod(self._step, self._rows // self._size)
    self._step += 1
    order = np.random.default_rng((self._seed, epoch)).permutation(self._rows)
    rows = order[step * self._size : (step + 1) * self._size]
    return {name: x[rows] for name, x in self._arrays.items()}

  def get_state(self) -> dict[str, Any]:
    """Returns the position in the data, which JSON can hold."""
    return {'step': self._step}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position that `get_state` gave."""
    self._step = state['step']


def in_order(arrays: Arrays, batch_size: int) -> Iterator[Arrays]:
  """Yields every row once; the last batch is filled up with masked rows."""
  for start in range(0, len(arrays['tokens']), batch_size):
    batch = {k: x[start : start + batch_size] for k, x in arrays.items()}
    missing = batch_size - len(batch['tokens'])
    yield {
        k: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        for k, x in batch.items()
    }
