"""A run of training: a model, its data, its optimizer, its mesh."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any, Literal

from hope_jax.config import architectures
from hope_jax.config.build import build, folder, require
from hope_jax.config.data import DataConfig
from hope_jax.config.model import ModelConfig
from hope_jax.config.optimizer import OptimizerConfig
from hope_jax.config.ranges import SEED, STEPS, Range, check_ranges


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 takes all that are left."""

  data: Annotated[int, Range(-1, 2**20)] = -1
  fsdp: Annotated[int, Range(-1, 2**20)] = 1
  tensor: Annotated[int, Range(-1, 2**20)] = 1

  def __post_init__(self):
    check_ranges(self)
    sizes = (self.data, self.fsdp, self.tensor)
    require(
        all(s == -1 or s > 0 for s in sizes) and sizes.count(-1) <= 1,
        'MeshConfig.data, fsdp and tensor are positive, and one of them may be'
        f' -1; got {sizes}',
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long to train, and what to write down on the way."""

  steps: Annotated[int, STEPS] = 1000
  seed: Annotated[int, SEED] = 0
  log_every: Annotated[int, STEPS] = 10
  eval_every: Annotated[int, STEPS] = 200
  eval_batches: Annotated[int, STEPS] = 16
  checkpoint_every: Annotated[int, STEPS] = 200
  keep_checkpoints: Annotated[int, STEPS] = 2
  # Stop (and save) after this many seconds; 0: no limit. A safety net: the
  # learning rate's schedule is that of `steps` either way.
  max_seconds: Annotated[float, Range(0, 1e9)] = 0.0
  # A step whose loss, gradient or update is not finite: stop the run, whose
  # checkpoints are all of before; or skip the step, which then changes neither
  # the parameters nor the optimizer's state, and count it (split 'skipped' of
  # metrics.jsonl). A run whose every step is skipped learns nothing.
  not_finite: Literal['stop', 'skip'] = 'stop'

  def __post_init__(self):
    check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides a run."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()
  # Where checkpoints, metrics and reports go: a folder of a mounted file
  # system. One program at a time writes to it.
  workdir: str = ''

  def __post_init__(self):
    # Frozen for everyone else.
    object.__setattr__(self, 'workdir', folder(self.workdir, 'workdir'))
    titans = self.model.titans
    shortest = min(titans.chunk, titans.projection_chunk)
    require(
        titans.grid != 'aligned'
        or not architectures.reads(self.model.architecture, 'titans.grid')
        or self.data.align % shortest == 0,
        "TitansConfig.grid='aligned' needs DataConfig.align to be a multiple of"
        f' the shorter chunk; got align={self.data.align}, chunk={shortest}',
    )
    continuum = self.model.continuum
    require(
        continuum.regime == 'outer'
        or not architectures.ARCHITECTURES[self.model.architecture].levels
        or self.data.align % continuum.periods[0] == 0,
        "ContinuumConfig.regime='in_context' needs DataConfig.align to be a"
        ' multiple of the fastest period; got'
        f' align={self.data.align}, periods={continuum.periods}',
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
