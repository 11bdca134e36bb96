"""The optimizers that a run or a study can name; an entry makes a new one.

    registry.register('mine', registry.Optimizer(my_optimizer, rate=1e-3))

and `--config.optimizer.name=mine` trains with it: `factory.make_optimizer`
builds it at a learning rate of 1, and puts clipping, the schedule, weight decay
and the levels' periods around it. Its options are the arguments of its factory
that have a default: `--config.optimizer.options.NAME=VALUE`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import types
import typing
from typing import Any, Literal, NamedTuple

import optax

from hope_jax.config import ranges
from hope_jax.config.build import nearest, shown
from hope_jax.optim.deep_momentum import deep_momentum
from hope_jax.optim.dgd import delta_dot_general, dgd
from hope_jax.optim.m3 import m3
from hope_jax.optim.momentum import (
    delta_momentum,
    feature_momentum,
    nonlinear_momentum,
    preconditioned_momentum,
)
from hope_jax.optim.multi_scale import multi_scale_momentum
from hope_jax.optim.muon import adamuon, muon


class Optimizer(NamedTuple):
  """An optimizer that can be named."""

  # (learning_rate, *, option=default, ...) -> optax.GradientTransformation
  factory: Callable[..., optax.GradientTransformation]
  # A usual learning rate, where a search for a better one starts.
  rate: float
  # That of the leaves that are no matrices, where it is another one.
  other_rate: float | None = None
  # () -> the `dot_general` of the model's layers while its loss is
  # differentiated, for an optimizer that gradients alone do not tell enough.
  dot_general: Callable[[], Callable] | None = None

  @property
  def parameters(self) -> Mapping[str, inspect.Parameter]:
    """All arguments of the factory, by name."""
    return inspect.signature(self.factory, eval_str=True).parameters

  @property
  def options(self) -> dict[str, inspect.Parameter]:
    """The arguments that are this optimizer's own, by name."""
    # A schedule and a decay are around an optimizer, and the same for all.
    common = ('learning_rate', 'weight_decay', 'mask')
    return {k: p for k, p in self.parameters.items() if k not in common}

  def rates(self) -> list[str]:
    """The options that are learning rates, beside the main one."""
    return [
        name
        for name, parameter in self.options.items()
        if optax.Schedule in typing.get_args(parameter.annotation)
    ]


# Where updates have a size of their own, rates go by it: AdamW's 0.2 in root
# mean square, Lion's 1 (a tenth of AdamW's rate, arXiv 2302.06675), ten times
# AdamW's where a momentum sums what AdamW averages. Else they are SGD's.
OPTIMIZERS: dict[str, Optimizer] = {
    'adamw': Optimizer(optax.adamw, rate=3e-3),
    'adam': Optimizer(optax.adam, rate=3e-3),
    'lion': Optimizer(optax.lion, rate=3e-4),
    'sgd': Optimizer(optax.sgd, rate=3e-2),
    'momentum': Optimizer(
        functools.partial(optax.sgd, momentum=0.9), rate=3e-2
    ),
    'muon': Optimizer(muon, rate=3e-3),
    'adamuon': Optimizer(adamuon, rate=3e-3),
    'm3': Optimizer(m3, rate=3e-3),
    'dgd': Optimizer(
        dgd, rate=3e-2, other_rate=3e-3, dot_general=delta_dot_general
    ),
    'deep_momentum': Optimizer(deep_momentum, rate=1e-1),
    'delta_momentum': Optimizer(delta_momentum, rate=3e-2),
    'feature_momentum': Optimizer(feature_momentum, rate=3e-2),
    'multi_scale_momentum': Optimizer(multi_scale_momentum, rate=3e-2),
    'nonlinear_momentum': Optimizer(nonlinear_momentum, rate=3e-2),
    'preconditioned_momentum': Optimizer(preconditioned_momentum, rate=3e-4),
}


# Which numbers an option takes, by its name, whichever optimizer has it; an
# option that is a learning rate takes `ranges.RATE`.
RANGES = {
    **dict.fromkeys(
        ('b1', 'b2', 'b3', 'beta', 'adam_b1', 'adam_b2', 'decay', 'decays',
         'momentum'),
        ranges.DECAY,
    ),
    **dict.fromkeys(('period', 'periods'), ranges.STEPS),
    **dict.fromkeys(('rms', 'consistent_rms'), ranges.RATE),
    **dict.fromkeys(('rate', 'slow_weight', 'weights'), ranges.RATE_OR_ZERO),
    'delta': ranges.SHARE,
    'eps': ranges.EPSILON,
    'eps_root': ranges.SHARE,
    'hidden': ranges.WIDTH,
    'ns_steps': ranges.Range(1, 100),
}

_OURS = frozenset(OPTIMIZERS)


def register(name: str, optimizer: Optimizer) -> None:
  """Adds an optimizer, which `optimizer.name` may then say.

  Again under the same name takes the place of the first: an experiment file
  that registers one may be loaded twice.

  Raises:
    ValueError: the name is one of the package's own.
  """
  if name in _OURS:
    raise ValueError(f'optimizer {name!r} is there already')
  OPTIMIZERS[name] = optimizer


def get(name: str) -> Optimizer:
  """Returns the optimizer of a name.

  Raises:
    ValueError: there is none; with the nearest name.
  """
  if name not in OPTIMIZERS:
    raise ValueError(
        f'unknown optimizer {name!r}; {nearest(name, OPTIMIZERS, "known")}'
    )
  return OPTIMIZERS[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
  """Refuses options that an optimizer does not have, or of another type.

  Args:
    name: of the optimizer.
    options: name -> value, plain values as a configuration has them.

  Raises:
    ValueError: in one line; with the nearest name, or what would be right.
  """
  known = get(name).options
  for option, value in options.items():
    if option not in known:
      raise ValueError(
          f'{name} has no option {option!r}; {nearest(option, known, "known")}'
      )
    kinds = _plain_kinds(known[option].annotation)
    if not any(_is_a(value, kind) for kind in kinds):
      wanted = ' or '.join(map(_say, kinds)) or 'left to Python code'
      raise ValueError(
          f'option {option!r} of {name} must be {wanted}; got {shown(value)}'
      )
    rate = option in get(name).rates()
    allowed = ranges.RATE if rate else RANGES.get(option)
    if allowed and name in _OURS and not ranges.fits(value, allowed):
      raise ValueError(
          f'option {option!r} of {name} must be in {allowed};'
          f' got {shown(value)}'
      )


_WORDS = {
    Any: 'anything',
    bool: 'true or false',
    float: 'a number',
    int: 'a whole number',
    str: 'a word',
    type(None): 'none',
}


def _plain_kinds(annotation: Any) -> list[Any]:
  """The types that an annotation allows and a configuration can hold."""
  if annotation is inspect.Parameter.empty:
    return [Any]
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  kinds = typing.get_args(annotation) if union else (annotation,)
  if complex in kinds:  # an `ArrayLike`: of plain values, a number
    kinds = [kind for kind in kinds if kind in (float, type(None))]
  return [
      kind
      for kind in kinds
      if kind in _WORDS or typing.get_origin(kind) in (Literal, Sequence)
  ]


def _is_a(value: Any, kind: Any) -> bool:
  arguments = typing.get_args(kind)
  if typing.get_origin(kind) is Literal:
    return value in arguments
  if arguments:
    return isinstance(value, (tuple, list)) and all(
        _is_a(item, arguments[0]) for item in value
    )
  if kind in (int, float):
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (kind is float and isinstance(value, float))
  return kind is Any or isinstance(value, kind)


def _say(kind: Any) -> str:
  arguments = typing.get_args(kind)
  if typing.get_origin(kind) is Literal:
    return ' or '.join(map(repr, arguments))
  return f'a tuple, each {_say(arguments[0])}' if arguments else _WORDS[kind]
