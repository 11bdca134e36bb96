"""The outermost level: the optimizer of a run."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any, ClassVar

from hope_jax.config.build import require
from hope_jax.config.ranges import (
    DECAY,
    EPSILON,
    RATE,
    SHARE,
    STEPS,
    Range,
    check_ranges,
)

# AdamW's options are fields of their own; these are their defaults.
_ADAMW = {'b1': 0.9, 'b2': 0.95, 'eps': 1e-8}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The outermost level: an optimizer, warm-up and cosine, clipping, decay."""

  # The fields that only some optimizers read.
  OWN: ClassVar = ('options', *_ADAMW)

  # One of optim/registry.py: adamw, adam, lion, sgd, momentum, muon, adamuon,
  # m3, dgd, deep_momentum, delta_momentum, feature_momentum,
  # multi_scale_momentum, nonlinear_momentum, preconditioned_momentum.
  name: str = 'adamw'
  # Of that optimizer, by the names of its arguments in `optim`, such as
  # options.period=10 of m3. Learning rates among them are those at the peak of
  # the schedule.
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  learning_rate: Annotated[float, RATE] = 1e-3
  final_learning_rate: Annotated[float, SHARE] = 0.1  # of learning_rate
  warmup_steps: Annotated[int, Range(0, 2**31 - 1)] = 100
  # AdamW's alone, 0.9, 0.95 and 1e-8 by default. Gradients well below eps no
  # longer move anything.
  b1: Annotated[float | None, DECAY] = None
  b2: Annotated[float | None, DECAY] = None
  eps: Annotated[float | None, EPSILON] = None
  # Decoupled, times the learning rate, on matrices that project.
  weight_decay: Annotated[float, Range(0, 100)] = 0.1
  clip_norm: Annotated[float, Range(0, 1e30, '(]')] = 1.0
  # The learning rate of a CMS level of period p is p^level_power times that of
  # all else. It moves once where others move p times, by a mean over p batches:
  # 0 is the same rate, 1/2 the square-root rule for batches p times as large, 1
  # goes as far in the same time.
  level_power: Annotated[float, SHARE] = 0.0
  # Micro-batches a step, each of data.batch_size / accumulate sequences.
  accumulate: Annotated[int, STEPS] = 1

  def __post_init__(self):
    check_ranges(self)
    # JSON has no tuples: what config.json gives back must be what was written.
    options = {k: _plain(v) for k, v in self.options.items()}
    object.__setattr__(self, 'options', options)
    for field, default in _ADAMW.items():
      given = getattr(self, field)
      if self.name != 'adamw':
        require(
            given is None,
            f'optimizer.{field} is not read by {self.name!r}: its options are'
            f' optimizer.options.NAME; got {field}={given!r}',
        )
        continue
      require(
          field not in options,
          f"option {field!r} of 'adamw' is the field optimizer.{field}",
      )
      if given is None:
        object.__setattr__(self, field, default)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  return tuple(map(_plain, value)) if isinstance(value, list) else value
