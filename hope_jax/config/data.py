"""Where text comes from, and how it is cut into sequences."""

import dataclasses
from typing import Annotated, Literal

from hope_jax.config.build import require
from hope_jax.config.ranges import INSIDE, SEED, TOKENS, check_ranges


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text comes from and how it is cut into sequences."""

  # stdlib: the source text of Python's standard library, on every machine.
  # files: `path` is a file or a glob. tfds, array_record: see data/sources.py.
  source: Literal['stdlib', 'files', 'tfds', 'array_record'] = 'stdlib'
  path: str = ''
  # Field of a record that holds the text (tfds).
  text_field: str = 'text'
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
  seed: Annotated[int, SEED] = 0

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
