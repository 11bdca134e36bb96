"""Optimizers side by side: what is trained, how long, with which seeds."""

import dataclasses
from typing import Literal

from hope_jax.config.build import positive, require
from hope_jax.config.data import DataConfig
from hope_jax.config.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A Vision Transformer (NL §9.7); its image size and channels are the data's.

  The paper's two, patches of 16: dim 384, heads 6, hidden 1536 (24 M), and dim
  768, heads 12, hidden 3072 (86 M). 12 layers are not given by the paper; they
  are those of ViT-S and ViT-B, which have these sizes.
  """

  patch: int = 16
  dim: int = 384
  layers: int = 12
  heads: int = 6
  hidden: int = 1536
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    positive(self, 'patch', 'dim', 'layers', 'heads', 'hidden')
    require(
        self.dim % self.heads == 0,
        f'VitConfig.heads must divide dim; got heads={self.heads},'
        f' dim={self.dim}',
    )


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Labelled images: scikit-learn's digits, or any set of TFDS."""

  # digits: 1,797 of 8 x 8, each fifth held out. tfds: `path` and `heldout_path`
  # as `DataConfig.path`, name@split or folder@split, prepared as array_record.
  source: Literal['digits', 'tfds'] = 'digits'
  path: str = ''
  heldout_path: str = ''
  image_field: str = 'image'
  label_field: str = 'label'
  classes: int = 10
  # Others are scaled to this size, and cut where they are not square.
  image_size: int = 8
  channels: int = 1
  batch_size: int = 128

  def __post_init__(self):
    positive(self, 'classes', 'image_size', 'channels', 'batch_size')
    require(
        self.source == 'digits' or bool(self.path and self.heldout_path),
        "ImageConfig.source='tfds' needs path and heldout_path; got"
        f' {self.path!r} and {self.heldout_path!r}',
    )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """A comparison of optimizers on one task; see evals/optimizers.py."""

  # landscape: NL Eq. 53, two numbers. images: a ViT. text: a language model.
  task: Literal['landscape', 'images', 'text'] = 'landscape'
  optimizers: tuple[str, ...] = (
      'adamw', 'muon', 'adamuon', 'm3', 'dgd', 'momentum', 'delta_momentum',
      'deep_momentum',
  )
  steps: int = 300
  # Learning rates tried for each optimizer, with the seed 0, and the seeds of
  # the runs at the best of them.
  trials: int = 6
  seeds: tuple[int, ...] = (1, 2, 3)
  # Warm-up, as a share of the steps; then a cosine to a tenth.
  warmup: float = 0.1
  clip_norm: float = 1.0
  eval_batches: int = 16
  vit: VitConfig = VitConfig()
  images: ImageConfig = ImageConfig()
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()

  def __post_init__(self):
    positive(self, 'steps', 'trials', 'clip_norm', 'eval_batches')
    require(
        0 <= self.warmup < 1,
        f'StudyConfig.warmup must be in [0, 1); got {self.warmup}',
    )
    require(
        0 not in self.seeds and len(set(self.seeds)) == len(self.seeds) > 0,
        'StudyConfig.seeds must differ, and 0 is that of the trials; got'
        f' {self.seeds}',
    )
    require(
        self.images.image_size % self.vit.patch == 0 or self.task != 'images',
        'VitConfig.patch must divide ImageConfig.image_size; got'
        f' {self.vit.patch} and {self.images.image_size}',
    )
