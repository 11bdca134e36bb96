"""Where text comes from, and how it is cut into sequences."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Annotated, Any, Literal

from hope_jax.config.build import require
from hope_jax.config.ranges import INSIDE, TOKENS, Range, check_ranges


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text comes from and how it is cut into sequences."""

  # stdlib: the source text of Python's standard library, on every machine.
  # files: `path` is a file or a glob; of .jsonl and .parquet each line, or row,
  # is a document. tfds, array_record: see data/sources.py.
  source: Literal['stdlib', 'files', 'tfds', 'array_record'] = 'stdlib'
  path: str = ''
  # Field of a record that holds the text (.jsonl, .parquet, tfds).
  text_field: str = 'text'
  # Several sources with their weights instead, each's share of the rows:
  # 'books/*.jsonl=3,code/**/*.py=1'. A source is a path or a glob, 'stdlib', or
  # a path behind 'tfds:' or 'array_record:'. In Python also {'books/*.jsonl':
  # 3}. Documents are held out of each.
  mixture: tuple[str, ...] | dict[str, float] = ()
  # Empty: bytes, 256 of them. Else a Hugging Face `tokenizers` JSON file.
  tokenizer: str = ''
  # What a text means that spells a control token of the tokenizer, such as
  # '</s>': these characters, as any others, or ('parse') the token itself,
  # which is then no text any more.
  control_tokens: Literal['text', 'parse'] = 'text'
  # Documents end with the tokenizer's token for it, '</s>' or the like, where
  # it has one; bytes have none. Without it a model never learns to stop.
  end_of_document: bool = True
  sequence_length: Annotated[int, TOKENS] = 512
  batch_size: Annotated[int, TOKENS] = 8
  # Documents start at multiples of this many tokens, so that the memories'
  # chunk grid meets their beginning. 1 packs without gaps.
  align: Annotated[int, TOKENS] = 16
  # Texts that take turns in each training row, 64 to 512 tokens at a time, with
  # one memory. Where a row is one text from a fresh memory, a model never meets
  # what another text left there, and reads worse with it than with none. Each
  # text is `sequence_length / interleave` tokens long. Not in the paper.
  interleave: Annotated[int, TOKENS] = 1
  # Share of documents held out for evaluation, chosen by a hash of their name.
  holdout: Annotated[float, INSIDE] = 0.05
  seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0

  def __post_init__(self):
    check_ranges(self)
    require(
        self.sequence_length % self.interleave == 0,
        f'DataConfig.interleave={self.interleave} must divide'
        f' sequence_length={self.sequence_length}',
    )
    require(
        self.source == 'stdlib' or bool(self.path),
        f'DataConfig.path is empty; source={self.source!r} needs a path',
    )
    if self.mixture:
      self._check_mixture()

  def _check_mixture(self) -> None:
    mixture = self.mixture
    if isinstance(mixture, Mapping):
      mixture = tuple(f'{path}={weight}' for path, weight in mixture.items())
      object.__setattr__(self, 'mixture', mixture)
    require(
        self.source == 'stdlib' and not self.path,
        'DataConfig.mixture names all sources; leave source and path out',
    )
    paths = [path for path, _ in map(_weighted, mixture)]
    twice = {path for path in paths if paths.count(path) > 1}
    require(
        not twice,
        f'DataConfig.mixture has {min(twice, default="")!r} twice; add the'
        ' weights',
    )

  def parts(self) -> tuple[tuple[str, float, 'DataConfig'], ...]:
    """Returns name ('' of a single source), weight and configuration of each.

    The configuration is that of the source alone.
    """
    if not self.mixture:
      return (('', 1.0, self),)
    found = []
    for path, weight in map(_weighted, self.mixture):
      kind, _, rest = path.partition(':')
      if path == 'stdlib':
        fields = dict(source='stdlib')
      elif kind in ('tfds', 'array_record'):
        fields = dict(source=kind, path=rest)
      else:
        fields = dict(source='files', path=path)
      one = dataclasses.replace(self, mixture=(), **fields)
      found.append((path, weight, one))
    return tuple(found)


def _weighted(entry: Any) -> tuple[str, float]:
  """Reads 'PATH=WEIGHT'."""
  path, _, text = str(entry).rpartition('=')
  try:
    weight = float(text)
  except ValueError:
    weight = math.nan
  require(
      bool(path) and 0 < weight < math.inf,
      "DataConfig.mixture is of 'PATH=WEIGHT', with a positive weight; got"
      f' {entry!r}',
  )
  return path, weight
