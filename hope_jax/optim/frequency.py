"""Levels of the outer optimizer: parameter groups with update periods.

Nested Learning orders the parts of a model by how often they are updated
(arXiv 2512.24695, Def. 2). A level of period p sees every gradient and moves
once in p steps (Eq. 71):

  A_t = A_{t-1} + g_t;   at t = p, 2p, ...:  theta += f(A_t / p),  A_t = 0

Not specified by the paper: what is accumulated, and its scale. Eq. 71 adds up
the optimizer's directions; here the raw gradients are accumulated and the
optimizer is run once a period on their mean, which is cheaper, and makes a
level of period p the same as plain training with batches p times as large.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import dimensions, leaves, momentum
from hope_jax.optim.precision import in_float32
from hope_jax.types import Array, PyTree


class FrequencyState(NamedTuple):
  """State of `at_frequency`."""

  steps: Array  # int32 [], gradients seen
  updates: Array  # int32 [], updates made: steps // period
  # Like the parameters, float32 or wider; empty at period 1.
  accumulator: PyTree
  inner: PyTree  # the state of the wrapped transformation


def _check_period(period: int, name: str) -> None:
  if not isinstance(period, int) or isinstance(period, bool) or period < 1:
    raise ValueError(f'{name} must be a positive integer; got {period!r}')


def at_frequency(
    tx: optax.GradientTransformation,
    period: int,
    *,
    accumulate: Literal['mean', 'sum'] = 'mean',
) -> optax.GradientTransformationExtraArgs:
  """Applies `tx` once in `period` steps, to the period's mean gradient.

  Between two updates the parameters do not move by one bit: the update is -0.0,
  the only number whose addition changes no float, not even -0.0. A
  learning-rate schedule inside `tx` counts updates; one that is to count steps
  belongs outside, as in `factory.make_optimizer`.

  Args:
    tx: any optax transformation.
    period: steps between two updates; 1 is `tx` itself, with counters.
    accumulate: what `tx` sees of a period's gradients: their 'mean', which
      keeps learning rates comparable, or their 'sum', as Eq. 71 prints it.

  Returns:
    A transformation with a `FrequencyState`.

  Raises:
    ValueError: the period is not a positive integer, or `accumulate` unknown.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.at_frequency(optax.sgd(1.0), 2)
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> first, state = tx.update(jnp.array([1.0, 3.0]), state)
    >>> second, state = tx.update(jnp.array([3.0, 5.0]), state)
    >>> print(first, second)
    [-0. -0.] [-2. -4.]

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §7.1, Eq. 71, and Def. 2.
  """
  _check_period(period, 'period')
  momentum.one_of('accumulate', accumulate, ('mean', 'sum'))
  count = period if accumulate == 'mean' else 1
  tx = optax.with_extra_args_support(tx)

  def init(params):
    accumulator = () if period == 1 else leaves.zeros(params)
    # Two arrays: who donates the state may not give one buffer twice.
    steps, updates = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
    return FrequencyState(steps, updates, accumulator, tx.init(params))

  def update(updates, state, params=None, **extra):
    steps = state.steps + 1
    if period == 1:
      updates, inner = tx.update(updates, state.inner, params, **extra)
      return updates, FrequencyState(steps, state.updates + 1, (), inner)
    total = jax.tree.map(
        lambda a, g: a + g.astype(a.dtype), state.accumulator, updates
    )

    def filled(value):
      like_them = jax.tree.map(lambda a: jnp.full_like(a, value), total)
      return dimensions.alike(like_them, total)

    def move(_):
      mean = jax.tree.map(lambda a: a / count, total)
      moves, inner = tx.update(mean, state.inner, params, **extra)
      moves = dimensions.alike(moves, total)
      inner = dimensions.alike(inner, state.inner)
      return moves, FrequencyState(steps, state.updates + 1, filled(0.0), inner)

    def hold(_):
      # The updates that move no parameter, whatever it is.
      still = filled(-0.0)
      return still, FrequencyState(steps, state.updates, total, state.inner)

    return jax.lax.cond(steps % period == 0, move, hold, 0)

  return in_float32(optax.GradientTransformationExtraArgs(init, update))


def nested(
    levels: Mapping[str, tuple[optax.GradientTransformation, int]],
    label_fn: Callable[[PyTree], PyTree] | PyTree,
) -> optax.GradientTransformationExtraArgs:
  """Gives each level of the parameters an optimizer and a period of its own.

  Args:
    levels: label -> (transformation, period). Sorted by period, each must be a
      multiple of the one before it, so that a slow level moves only when all
      faster ones do.
    label_fn: parameters -> labels, or a tree of labels, as in optax.partition.

  Returns:
    A transformation; read its counters with `update_counts`.

  Raises:
    ValueError: a period is not a positive integer, or not a multiple of the
      period of the next faster level; at init, a label that is no level's.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> params = {'fast': jnp.ones(2), 'slow': jnp.ones(2)}
    >>> tx = optim.nested(
    ...     {'fast': (optax.adam(0.1), 1), 'slow': (optax.adam(0.1), 4)},
    ...     {'fast': 'fast', 'slow': 'slow'},
    ... )
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> print({name: int(n) for name, n in optim.update_counts(state).items()})
    {'fast': 1, 'slow': 0}
  """
  for label, (_, period) in levels.items():
    _check_period(period, f'period of level {label!r}')
  ordered = sorted(levels.items(), key=lambda item: item[1][1])
  for (fast, (_, short)), (slow, (_, long)) in zip(ordered, ordered[1:]):
    if long % short:
      raise ValueError(
          f'period {long} of level {slow!r} is not a multiple of period {short}'
          f' of the faster level {fast!r}'
      )
  return leaves.partition(
      {label: at_frequency(tx, p) for label, (tx, p) in levels.items()},
      label_fn,
  )


def update_counts(opt_state: PyTree) -> dict[str, Any]:
  """Returns how often each level has been updated.

  Args:
    opt_state: any optimizer state with `FrequencyState`s in it.

  Returns:
    label of `nested` (or 'all' for an `at_frequency` of its own) -> int32 [].
  """
  nodes = jax.tree_util.tree_leaves_with_path(
      opt_state, is_leaf=lambda node: isinstance(node, FrequencyState)
  )
  counts = {}
  for path, node in nodes:
    if isinstance(node, FrequencyState):
      labels = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
      counts[labels[-1] if labels else 'all'] = node.updates
  return counts
