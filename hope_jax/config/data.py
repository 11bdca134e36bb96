"""Where text comes from, and how it is cut into sequences."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal

from hope_jax.config.build import positive, require


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
  sequence_length: int = 512
  batch_size: int = 8
  # Documents start at multiples of this many tokens, so that the memories'
  # chunk grid meets their beginning. 1 packs without gaps.
  align: int = 16
  # Texts that take turns in each training row, 64 to 512 tokens at a time, with
  # one memory. Where a row is one text from a fresh memory, a model never meets
  # what another text left there, and reads worse with it than with none. Each
  # text is `sequence_length / interleave` tokens long. Not in the paper.
  interleave: int = 1
  # Share of documents held out for evaluation, chosen by a hash of their name.
  holdout: float = 0.05
  seed: int = 0

  def __post_init__(self):
    positive(self, 'sequence_length', 'batch_size', 'align', 'interleave')
    require(
        self.sequence_length % self.interleave == 0,
        f'DataConfig.interleave={self.interleave} must divide'
        f' sequence_length={self.sequence_length}',
    )
    require(
        0 < self.holdout < 1,
        f'DataConfig.holdout must be in (0, 1); got {self.holdout}',
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
