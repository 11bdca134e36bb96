"""The outermost level: the optimizer of a run."""

import dataclasses

from hope_jax.config.build import positive


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
