"""Documents to batches: what the training loop and the evaluations read.

Training: shuffle the documents (anew each epoch), take this process's share,
tokenise, pack, shuffle rows within a window, batch. Everything is read as a
stream, a window at a time, so a corpus may be larger than memory; and every
stage knows its place, so the iterator's state is a few numbers.

Texts may be made to take turns in a row (`packing.interleave`).

Rows are shuffled because a long document fills many rows in a row: without it a
batch would hold little else than one document.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import packing
from hope_jax.data.sources import Source, open_source, split
from hope_jax.data.tokenizer import (
  Tokenizer,
  check,
  encode_document,
  load_tokenizer,
)

Batch = dict[str, np.ndarray]

# Tokens among which rows are shuffled: some 140 files of the standard library,
# in 40 MB. It is refilled in one go, a fraction of a second for bytes.
_WINDOW_TOKENS = 2**21
# Two readers hide the latency of a disk; more would only contend for the
# interpreter. What they read ahead is bounded in documents.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class _PackedRows(grain.IterDataset):
  """Packs encoded documents; its place is a document and an offset in it."""

  def __init__(self, parent: grain.IterDataset, **options: int):
    super().__init__(parent)
    self._options = options

  def __iter__(self) -> '_PackedRowsIterator':
    return _PackedRowsIterator(iter(self._parent), self._options)


class _PackedRowsIterator(grain.DatasetIterator):
  """Iterator of `_PackedRows`: rows, and a state between any two of them."""

  def __init__(self, parent: grain.DatasetIterator, options: dict[str, int]):
    super().__init__(parent)
    self._options = options
    self._restart(offset=0)

  def _restart(self, *, offset: int) -> None:
    self._offset = offset
    # Where the document read last begins, for a row that ends inside it.
    self._document_state = self._parent.get_state()
    self._rows = packing.pack(
        self._documents(), offset=offset, **self._options
    )

  def _documents(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
      self._document_state = self._parent.get_state()
      try:
        document = next(self._parent)
      except StopIteration:
        return
      yield document

  def __next__(self) -> packing.Row:
    row, self._offset = next(self._rows)
    return row

  def get_state(self) -> dict[str, Any]:
    inside = self._offset > 0
    return {
        'documents': (
            self._document_state if inside else self._parent.get_state()
        ),
        'offset': self._offset,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state['documents'])
    self._restart(offset=state['offset'])


def train_batches(
    config: DataConfig, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
  """Returns an endless iterator of training batches.

  A batch holds the arrays of `packing.pack`, each with a leading axis of
  `config.batch_size / process_count` rows. Of one epoch's documents each
  process sees a share of its own. The order depends on `config.seed` only.

  A training text shorter than one sequence is refused: each row would hold
  copies of it, and a model that has learned one short text by heart is no
  result. Short documents among others are fine, since they are packed.

  Args:
    config: what to read.
    process_index: this process, from 0.
    process_count: processes that share the batch.

  Returns:
    The iterator. `get_state()` gives its place as nested dicts of numbers (JSON
    holds them), one for each process, and `set_state(state)` on a new iterator
    of the same arguments goes on with the batches that would have followed, bit
    for bit.

  Raises:
    ConfigError: if there is nothing to read, or too little.
  """
  rows = _rows_per_process(config, process_count)
  tokenizer = load_tokenizer(config)
  documents, _ = split(open_source(config), config.holdout)
  check(tokenizer, (documents[i][1] for i in range(len(documents))))
  _require_sequence(documents, tokenizer, config.sequence_length)
  if len(documents) < process_count:
    raise ConfigError(
        f'data.path: {len(documents)} training documents for {process_count}'
        ' processes; each needs one at least: give more files or records'
    )
  mine = (
      grain.MapDataset.source(documents)
      .seed(_seed(config))
      .shuffle()[process_index::process_count]
      .repeat()
  )
  texts = config
  if config.interleave > 1:
    # Documents start no memory in such rows, so that they need no grid.
    texts = dataclasses.replace(
        config,
        sequence_length=config.sequence_length // config.interleave,
        batch_size=config.batch_size * config.interleave,
        interleave=1,
        align=1,
    )
  window = _window_rows(documents, texts)
  batches = _shuffled_rows(
      mine, tokenizer, texts, window=window, seed=_seed(config)
  ).batch(rows * config.interleave, drop_remainder=True)
  if config.interleave > 1:
    batches = batches.random_map(
        functools.partial(packing.interleave, texts=config.interleave),
        seed=_seed(config) + process_index,
    )
  return iter(batches)


def heldout_batches(
    config: DataConfig,
    limit: int | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
  """Yields the held-out text in batches, the same at every call.

  Rows come in a fixed random order, whatever `config.seed` is, so that a
  `limit` takes a sample of many documents rather than the first few whole.
  Without a limit every held-out token is a target exactly once. The last batch
  is filled up with rows of padding, so that all have one shape, and so that all
  processes get as many.

  Args:
    config: what to read.
    limit: batches to stop after; None: all.
    process_index: this process, from 0.
    process_count: processes that share each batch.

  Yields:
    Batches as of `train_batches`.

  Raises:
    ConfigError: if there is nothing to read.
  """
  share = _rows_per_process(config, process_count)
  tokenizer = load_tokenizer(config)
  _, documents = split(open_source(config), config.holdout)
  check(tokenizer, (documents[i][1] for i in range(len(documents))))
  stream = _shuffled_rows(
      grain.MapDataset.source(documents),
      tokenizer,
      config,
      window=_window_rows(documents, config),
      seed=0,
  )
  mine = slice(process_index * share, (process_index + 1) * share)
  blank = packing.empty_row(config.sequence_length)
  for index, batch in enumerate(stream.batch(config.batch_size)):
    if index == limit:
      return
    missing = config.batch_size - len(batch['tokens'])
    yield {
        key: np.concatenate([rows, np.stack([blank[key]] * missing)])[mine]
        if missing
        else rows[mine]
        for key, rows in batch.items()
    }


def train_text(config: DataConfig) -> bytes:
  """Returns the training documents joined, for models that count bytes."""
  return _joined(split(open_source(config), config.holdout)[0])


def heldout_text(config: DataConfig) -> bytes:
  """Returns the held-out documents joined: the text of `heldout_batches`."""
  return _joined(split(open_source(config), config.holdout)[1])


def _joined(documents: Source) -> bytes:
  return b''.join(documents[i][1] for i in range(len(documents)))


def _shuffled_rows(
    documents: grain.MapDataset,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    window: int,
    seed: int,
) -> grain.IterDataset:
  """Tokenises and packs documents, and shuffles the rows within a window."""
  encoded = documents.map(
      lambda document: encode_document(
          tokenizer, document[1], end=config.end_of_document
      )
  )
  rows = _PackedRows(
      encoded.to_iter_dataset(_READ),
      length=config.sequence_length,
      align=config.align,
      bos=tokenizer.bos,
  )
  return grain.experimental.WindowShuffleIterDataset(
      rows, window_size=window, seed=seed
  )


def _window_rows(documents: Source, config: DataConfig) -> int:
  """Returns among how many rows to shuffle: a window's, at most an epoch's."""
  tokens = 0  # Counted in bytes, which are as many or more.
  for index in range(len(documents)):
    tokens += len(documents[index][1])
    if tokens >= _WINDOW_TOKENS:
      break
  rows = min(tokens, _WINDOW_TOKENS) // config.sequence_length
  # At least the rows of some batches, where rows are as long as the window.
  return max(rows, 4 * config.batch_size)


def _rows_per_process(config: DataConfig, process_count: int) -> int:
  if config.batch_size % process_count:
    raise ConfigError(
        f'data.batch_size must be a multiple of the {process_count} processes;'
        f' got {config.batch_size}'
    )
  return config.batch_size // process_count


def _seed(config: DataConfig) -> int:
  # Grain wants 32 bits and adds the epoch; half the range leaves room for it.
  return config.seed % 2**31


def _require_sequence(
    documents: Source, tokenizer: Tokenizer, length: int
) -> None:
  total = 0
  for index in range(len(documents)):
    total += len(tokenizer.encode(documents[index][1]).ids)
    if total >= length:
      return
  raise ConfigError(
      f'data.path: the training text has {total} tokens, less than one sequence'
      f' of {length}; give a longer text or a smaller data.sequence_length'
  )
