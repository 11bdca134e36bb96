"""Multi-scale momentum: a continuum memory over gradients (NL §7.1-7.2).

Momentum is a memory of gradients with one time scale. Here several stand side
by side, each updated at its own frequency (Eq. 74, 75), and the step follows
their weighted sum. `m3` orthogonalises two of them.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import leaves
from hope_jax.optim.precision import keeps_float32
from hope_jax.types import Array, PyTree

Accumulate = Literal['ema', 'sum']


class SlowLevel(NamedTuple):
  """A momentum that stands still between two updates."""

  gathering: PyTree  # M with the open period's gradients, float32, like params
  read: PyTree  # what the steps of this period see: sigma(M) at its start


class MultiScaleState(NamedTuple):
  """State of `scale_by_multi_scale_momentum`."""

  count: Array  # int32 [], gradients seen
  levels: tuple[SlowLevel, ...]


def check(accumulate: str, **periods) -> None:
  """Raises ValueError for an unknown `accumulate`, or a period below 1."""
  if accumulate not in ('ema', 'sum'):
    raise ValueError(
        f"accumulate must be 'ema' or 'sum'; got {accumulate!r}"
    )
  for name, period in periods.items():
    # An injected hyperparameter is an array, whose value is not known here.
    known = isinstance(period, (int, float))
    if known and not (period >= 1 and period == int(period)):
      raise ValueError(f'{name} must be a positive integer; got {period}')


def _check_levels(periods, decays, weights) -> None:
  if not len(periods) == len(decays) == len(weights) > 0:
    raise ValueError(
        'periods, decays and weights need one entry a level; got'
        f' {len(periods)}, {len(decays)} and {len(weights)}'
    )
  for short, long in zip(periods, periods[1:]):
    if long % short:
      raise ValueError(
          f'period {long} of a slower level is not a multiple of period {short}'
          ' of the faster one before it'
      )


def advance(level, grads, count, period, decay, accumulate, read):
  """A level at gradient number `count` (from 0), which starts or not a period.

  At the start of a period the finished memory is read, once, and kept for the
  steps of the period; then it decays. The gradients of the period come in one
  by one, so that no other accumulator is needed.
  """
  starts = count % period == 0
  fresh = jax.lax.cond(
      starts,
      lambda: read(level.gathering, count // period),
      lambda: level.read,
  )
  kept, share = _shares(decay, accumulate, period)
  gathering = jax.tree.map(
      lambda m, g: jnp.where(starts, kept, 1.0) * m + share * g.astype(m.dtype),
      level.gathering,
      grads,
  )
  return SlowLevel(gathering, fresh)


def _shares(decay, accumulate, period=1):
  """What a memory keeps at an update, and what each gradient adds to it."""
  return (decay, (1 - decay) / period) if accumulate == 'ema' else (1.0, decay)


def debias(decay, updates):
  """1 / (1 - decay^n) without loss of digits; 0 before the first update."""
  n = jnp.asarray(updates, float)
  share = -jnp.expm1(n * jnp.log(decay))
  return jnp.where(n > 0, 1 / jnp.where(n > 0, share, 1), 0)


@keeps_float32
def scale_by_multi_scale_momentum(
    *,
    periods: Sequence[int] = (1, 10, 100),
    decays: Sequence[float] = (0.9, 0.9, 0.9),
    weights: Sequence[float] = (1.0, 0.5, 0.25),
    accumulate: Accumulate = 'ema',
) -> optax.GradientTransformation:
  """The weighted sum of momenta of several time scales (NL Eq. 74, 75).

  Level l with period p takes in the mean gradient of each p steps,

      M_l <- decay_l M_l + (1 - decay_l) mean(g)        once in p steps

  and stands still in between; it is bias-corrected by its own updates. A slow
  level is first read when its first period is over. One level of period 1 is
  `optax.ema(decay)`. accumulate='sum' is the printed form: M_l <- M_l + decay_l
  sum(g), which forgets nothing, without bias correction.

  Args:
    periods: steps between two updates of each level, fastest first; each
      divides the next.
    decays: what each keeps of itself at an update.
    weights: their shares of the step.
    accumulate: 'ema' or 'sum'.

  Returns:
    A transformation with a `MultiScaleState`: one copy of the parameters for a
    level of period 1, two for a slower one.

  Raises:
    ValueError: lengths that differ, or a period that is not a positive multiple
      of the one before it.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §7.1-7.2, Eq. 74-75.
  """
  periods, decays, weights = tuple(periods), tuple(decays), tuple(weights)
  check(accumulate, **{f'periods[{i}]': p for i, p in enumerate(periods)})
  _check_levels(periods, decays, weights)

  def correct(decay):
    def read(memory, updates):
      scale = debias(decay, updates) if accumulate == 'ema' else 1.0
      return jax.tree.map(lambda m: (m * scale).astype(m.dtype), memory)

    return read

  def init(params):
    levels = tuple(
        SlowLevel(leaves.zeros(params), () if p == 1 else leaves.zeros(params))
        for p in periods
    )
    return MultiScaleState(jnp.zeros([], jnp.int32), levels)

  def update(updates, state, params=None):
    del params
    levels, reads = [], []
    for level, period, decay in zip(state.levels, periods, decays):
      if period == 1:
        memory = blend(level.gathering, updates, decay, accumulate)
        levels.append(SlowLevel(memory, ()))
        reads.append(correct(decay)(memory, state.count + 1))
      else:
        level = advance(
            level, updates, state.count, period, decay, accumulate,
            correct(decay),
        )
        levels.append(level)
        reads.append(level.read)
    updates = jax.tree.map(
        lambda g, *ms: jnp.asarray(
            sum(w * m for w, m in zip(weights, ms)), g.dtype
        ),
        updates,
        *reads,
    )
    return updates, MultiScaleState(state.count + 1, tuple(levels))

  return optax.GradientTransformation(init, update)


def blend(memory, grads, decay, accumulate, of=lambda g: g):
  """memory with `of` the new gradients: an average, or the printed sum."""
  kept, share = _shares(decay, accumulate)
  return jax.tree.map(
      lambda m, g: (kept * m + share * of(g.astype(m.dtype))).astype(m.dtype),
      memory,
      grads,
  )


@keeps_float32
def multi_scale_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    periods: Sequence[int] = (1, 10, 100),
    decays: Sequence[float] = (0.9, 0.9, 0.9),
    weights: Sequence[float] = (1.0, 0.5, 0.25),
    accumulate: Accumulate = 'ema',
) -> optax.GradientTransformation:
  """Descent along `scale_by_multi_scale_momentum`.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.multi_scale_momentum(0.1, periods=(1, 4), decays=(0.9, 0.5),
    ...                                 weights=(1.0, 0.3))
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(60):
    ...   updates, state = update(jax.grad(lambda w: w @ w)(w), state)
    ...   w = optax.apply_updates(w, updates)
    >>> bool(w @ w < 1e-2)
    True
  """
  return optax.chain(
      scale_by_multi_scale_momentum(
          periods=periods, decays=decays, weights=weights, accumulate=accumulate
      ),
      optax.scale_by_learning_rate(learning_rate),
  )
