"""A run of training: a model, its data, its optimizer, its mesh."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from hope_jax.config.build import build, positive, require
from hope_jax.config.model import ModelConfig


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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The outermost level: AdamW, warm-up and cosine, clipping, accumulation."""

  learning_rate: float = 1e-3
  final_learning_rate: float = 0.1  # as a share of learning_rate
  warmup_steps: int = 100
  b1: float = 0.9
  b2: float = 0.95
  # Gradients well below it no longer move anything.
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 1.0
  # Micro-batches a step, each of data.batch_size / accumulate sequences.
  accumulate: int = 1

  def __post_init__(self):
    positive(self, 'learning_rate', 'eps', 'clip_norm', 'accumulate')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 takes all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    require(
        all(s == -1 or s > 0 for s in sizes) and sizes.count(-1) <= 1,
        f'MeshConfig: sizes are positive, and one may be -1; got {sizes}',
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long to train, and what to write down on the way."""

  steps: int = 1000
  seed: int = 0
  log_every: int = 10
  eval_every: int = 200
  eval_batches: int = 16
  checkpoint_every: int = 200
  keep_checkpoints: int = 2
  # Stop (and save) after this many seconds; 0: no limit. A safety net: the
  # learning rate's schedule is that of `steps` either way.
  max_seconds: float = 0.0

  def __post_init__(self):
    positive(
        self, 'steps', 'log_every', 'eval_every', 'eval_batches',
        'checkpoint_every', 'keep_checkpoints',
    )


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides a run."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()
  # Where checkpoints, metrics and reports go.
  workdir: str = ''

  def __post_init__(self):
    titans = self.model.titans
    shortest = min(titans.chunk, titans.projection_chunk)
    require(
        titans.grid != 'aligned'
        or self.model.architecture not in ('hope', 'titans', 'ttt')
        or self.data.align % shortest == 0,
        "TitansConfig.grid='aligned' needs DataConfig.align to be a multiple of"
        f' the shorter chunk; got align={self.data.align}, chunk={shortest}',
    )
    require(
        self.data.batch_size % self.optimizer.accumulate == 0,
        'OptimizerConfig.accumulate must divide DataConfig.batch_size; got'
        f' {self.optimizer.accumulate} and {self.data.batch_size}',
    )


def from_dict(values: Mapping[str, Any], kind: type = Config) -> Any:
  """Builds a configuration from nested mappings (as of `ml_collections`).

  Args:
    values: what to change of the defaults.
    kind: `Config`, or another dataclass.

  Returns:
    A `kind`.

  Raises:
    ConfigError: on an unknown field (with the nearest name), a wrong type, or
      values that contradict each other; the message is one line.
  """
  return build(kind, values)


def to_dict(config: Any) -> dict[str, Any]:
  """Returns the configuration as nested dicts of plain values."""
  return dataclasses.asdict(config)
