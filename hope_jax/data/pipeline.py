"""Documents to batches: what the training loop and the evaluations read.

Training: shuffle the documents (anew each epoch), take this process's share,
tokenise, pack, mix the rows of several sources by their weights, shuffle rows
within a window, batch. Everything is read as a stream, a window at a time, so a
corpus may be larger than memory; and every stage knows its place, so the
iterator's state is a few numbers.

Texts may be made to take turns in a row (`packing.interleave`).

Rows are shuffled because a long document fills many rows in a row: without it a
batch would hold little else than one document.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import packing, pieces, texts
from hope_jax.data.rows import MixedRows, PackedRows
from hope_jax.data.sources import Part, Source, heldout_of, open_parts
from hope_jax.data.tokenizer import Tokenizer, check, load_tokenizer

Batch = dict[str, np.ndarray]

# Tokens among which rows are shuffled: some 140 files of the standard library,
# in 40 MB. It is refilled in one go, a fraction of a second for bytes.
_WINDOW_TOKENS = 2**21
# And documents: a row of short ones holds many, in random order, by itself.
_WINDOW_DOCUMENTS = 2**13


def train_batches(
    config: DataConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    tile: int = 1,
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
    tile: as in `packing.pack`; `architectures.chunk_of` of the model to train.

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
  parts = open_parts(config)
  for part in parts:
    check(tokenizer, _texts(part.train))
    _require_enough(part, tokenizer, config.sequence_length, process_count)
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
  # Where texts take turns, documents start no memory, and need no tiles.
  options = _options(texts, tokenizer, tile if config.interleave == 1 else 1)
  mine = [
      PackedRows(
          grain.MapDataset.source(part.train)
          .seed((_seed(config) + index) % 2**31)
          .shuffle()[process_index::process_count]
          .repeat(),
          **options,
      )
      for index, part in enumerate(parts)
  ]
  stream = mine[0]
  if len(mine) > 1:
    stream = MixedRows(mine, [part.weight for part in parts])
  batches = _shuffled(
      stream, [part.train for part in parts], texts, seed=_seed(config)
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
    tile: int = 1,
    source: str | None = None,
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
    tile: as in `packing.pack`; `architectures.chunk_of` of the model to ask.
    source: of a mixture, the path of the one whose text it is; None: of all.

  Yields:
    Batches as of `train_batches`.

  Raises:
    ConfigError: if there is nothing to read.
  """
  share = _rows_per_process(config, process_count)
  tokenizer = load_tokenizer(config)
  documents = heldout_of(open_parts(config), source)
  check(tokenizer, _texts(documents))
  stream = _shuffled(
      PackedRows(
          grain.MapDataset.source(documents),
          **_options(config, tokenizer, tile),
      ),
      [documents],
      config,
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
  return b''.join(_joined(part.train) for part in open_parts(config))


def heldout_text(config: DataConfig, source: str | None = None) -> bytes:
  """Returns the held-out documents joined: the text of `heldout_batches`."""
  return _joined(heldout_of(open_parts(config), source))


def _joined(documents: Source) -> bytes:
  return b''.join(text[:] for text in _texts(documents))


def _texts(documents: Source) -> Iterator[texts.Text]:
  return (documents[i][1] for i in range(len(documents)))


def _options(
    config: DataConfig, tokenizer: Tokenizer, tile: int
) -> dict[str, Any]:
  """Returns the options of `PackedRows`."""
  return dict(
      tokenizer=tokenizer,
      end=config.end_of_document,
      length=config.sequence_length,
      align=config.align,
      tile=tile,
  )


def _shuffled(
    rows: grain.IterDataset,
    sources: Sequence[Source],
    config: DataConfig,
    *,
    seed: int,
) -> grain.IterDataset:
  """Shuffles rows within a window: of some tokens, at most of an epoch's."""
  tokens = 0  # Counted in bytes, which are as many or more.
  for documents in sources:
    for index in range(min(len(documents), _WINDOW_DOCUMENTS)):
      if tokens >= _WINDOW_TOKENS:
        break
      tokens += len(documents[index][1])
  window = min(tokens, _WINDOW_TOKENS) // config.sequence_length
  # At least the rows of some batches, where rows are as long as the window.
  return grain.experimental.WindowShuffleIterDataset(
      rows, window_size=max(window, 4 * config.batch_size), seed=seed
  )


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


def _require_enough(
    part: Part, tokenizer: Tokenizer, length: int, process_count: int
) -> None:
  """Refuses a source with too little to train on."""
  total = 0
  for index in range(len(part.train)):
    for piece in pieces.encode(tokenizer, part.train[index][1]):
      total += len(piece.ids)
      if total >= length:
        break
    if total >= length:
      break
  whose = f' of {part.label!r}' if part.label else ''
  if total < length:
    raise ConfigError(
        f'data.path: the training text{whose} has {total} tokens, less than one'
        f' sequence of {length}; give a longer text or a smaller'
        ' data.sequence_length'
    )
  if len(part.train) < process_count:
    raise ConfigError(
        f'data.path: {len(part.train)} training documents{whose} for'
        f' {process_count} processes; each needs one at least: give more files'
        ' or records'
    )
