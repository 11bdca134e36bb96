"""Documents to rows, and rows of several sources to one stream.

Stages of a `grain` pipeline whose place is a few numbers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grain

from hope_jax.data import packing, pieces, texts
from hope_jax.data.tokenizer import (
    Encoded,
    Tokenizer,
    encode_document,
    ended,
)

# Two readers hide the latency of a disk; more would only contend for the
# interpreter. What they read ahead is bounded in documents.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class PackedRows(grain.IterDataset):
  """Encodes documents in pieces and packs them."""

  def __init__(
      self,
      documents: grain.MapDataset,
      tokenizer: Tokenizer,
      *,
      end: bool = False,
      **options: int,
  ):
    """Keeps what to pack.

    Args:
      documents: (name, text) pairs, in order.
      tokenizer: encodes them.
      end: documents end with `tokenizer.eos`, where there is one.
      **options: of `packing.pack`.
    """

    # Short documents are encoded ahead; of a long one, which is in hand many
    # times over where a corpus is short, the place alone is passed on.
    def head(document: tuple[str, texts.Text]) -> Encoded | texts.Text:
      text = document[1]
      if not isinstance(text, bytes):
        return text
      return encode_document(tokenizer, text, end=end)

    super().__init__(documents.map(head).to_iter_dataset(_READ))
    self._tokenizer = tokenizer
    self._end = end
    self._options = options

  def __iter__(self) -> '_PackedRowsIterator':
    return _PackedRowsIterator(
        iter(self._parent), self._tokenizer, self._end, self._options
    )


class _PackedRowsIterator(grain.DatasetIterator):
  """Iterator of `PackedRows`: rows, and a state between any two of them."""

  def __init__(
      self,
      parent: grain.DatasetIterator,
      tokenizer: Tokenizer,
      end: bool,
      options: dict[str, int],
  ):
    super().__init__(parent)
    self._tokenizer = tokenizer
    self._end = end
    self._options = options
    self._restart(offset=0, begin=0)

  def _restart(self, *, offset: int, begin: int) -> None:
    self._offset = offset
    # Where the document read last is, and in it the piece read last, for a row
    # that ends inside it.
    self._document_state = self._parent.get_state()
    self._begin = begin
    self._rows = packing.pack(
        self._pieces(begin), offset=offset, bos=self._tokenizer.bos,
        **self._options,
    )

  def _pieces(self, begin: int) -> Iterator[pieces.Piece]:
    while True:
      self._document_state = self._parent.get_state()
      try:
        document = next(self._parent)
      except StopIteration:
        return
      if isinstance(document, Encoded):
        self._begin = 0
        yield pieces.Piece(*document, ends=True, begin=0)
      else:
        for piece in pieces.encode(self._tokenizer, document, begin):
          self._begin = piece.begin
          if piece.ends and self._end:
            with_end = ended(self._tokenizer, piece.ids, piece.num_bytes)
            piece = piece._replace(**with_end._asdict())
          yield piece
      # A long text goes before the next one comes.
      document, begin = None, 0

  def __next__(self) -> packing.Row:
    row, self._offset = next(self._rows)
    return row

  def get_state(self) -> dict[str, Any]:
    inside = self._offset > 0
    return {
        'documents': (
            self._document_state if inside else self._parent.get_state()
        ),
        # Tokens that rows hold already, of the piece that begins there.
        'offset': self._offset,
        'piece': self._begin if inside else 0,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state['documents'])
    # Positions written before there were pieces count from the document's
    # first token.
    self._restart(offset=state['offset'], begin=state.get('piece', 0))


class MixedRows(grain.IterDataset):
  """Takes rows from endless sources, in the proportion of their weights.

  The next row is of the source that is furthest behind its share, the first of
  equals: after n rows each has its share to within less than a row for each
  other source, at any n. (grain's own mix rounds weights to a hundredth of the
  least one.)
  """

  def __init__(
      self, parents: Sequence[grain.IterDataset], weights: Sequence[float]
  ):
    """Keeps the sources and their weights, which need not add up to 1."""
    super().__init__(parents)
    self._weights = tuple(weight / sum(weights) for weight in weights)

  def __iter__(self) -> '_MixedRowsIterator':
    return _MixedRowsIterator(
        [iter(parent) for parent in self._parents], self._weights
    )


class _MixedRowsIterator(grain.DatasetIterator):
  """Iterator of `MixedRows`; its place is how many rows each source gave."""

  def __init__(
      self,
      parents: Sequence[grain.DatasetIterator],
      weights: tuple[float, ...],
  ):
    super().__init__(parents)
    self._weights = weights
    self._given = [0] * len(weights)

  def __next__(self) -> packing.Row:
    count = sum(self._given) + 1
    behind = [
        weight * count - given
        for weight, given in zip(self._weights, self._given)
    ]
    chosen = behind.index(max(behind))
    row = next(self._parents[chosen])
    self._given[chosen] += 1
    return row

  def get_state(self) -> dict[str, Any]:
    return {
        'sources': [parent.get_state() for parent in self._parents],
        'given': list(self._given),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    for parent, place in zip(self._parents, state['sources'], strict=True):
      parent.set_state(place)
    self._given = list(state['given'])

