"""Multi-scale momentum: a continuum memory over gradients; M3 (NL §7.2).

Momentum is a memory of gradients with one time scale. Here several stand side
by side, each updated at its own frequency (Eq. 74, 75), and the step follows
their weighted sum. M3 (Algorithm 1) is the case of two levels that are
orthogonalised as in Muon and divided by Adam's second moment.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import leaves, newton_schulz
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


class M3State(NamedTuple):
  """State of `scale_by_m3`."""

  count: Array  # int32 [], gradients seen
  fast: PyTree  # M1, float32, like the parameters
  slow: SlowLevel  # M2 and O2
  second: PyTree  # V, float32


def _check(accumulate: str, **periods) -> None:
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


def _advance(level, grads, count, period, decay, accumulate, read):
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


def _debias(decay, updates):
  """1 / (1 - decay^n) without loss of digits; 0 before the first update."""
  n = jnp.asarray(updates, float)
  share = -jnp.expm1(n * jnp.log(decay))
  return jnp.where(n > 0, 1 / jnp.where(n > 0, share, 1), 0)


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
  _check(accumulate, **{f'periods[{i}]': p for i, p in enumerate(periods)})
  _check_levels(periods, decays, weights)

  def correct(decay):
    def read(memory, updates):
      scale = _debias(decay, updates) if accumulate == 'ema' else 1.0
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
        memory = _blend(level.gathering, updates, decay, accumulate)
        levels.append(SlowLevel(memory, ()))
        reads.append(correct(decay)(memory, state.count + 1))
      else:
        level = _advance(
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


def _blend(memory, grads, decay, accumulate, of=lambda g: g):
  """memory with `of` the new gradients: an average, or the printed sum."""
  kept, share = _shares(decay, accumulate)
  return jax.tree.map(
      lambda m, g: (kept * m + share * of(g.astype(m.dtype))).astype(m.dtype),
      memory,
      grads,
  )


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


def scale_by_m3(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9,
    slow_weight: float = 0.5,
    period: int = 10,
    ns_steps: int = 5,
    eps: float = 1e-8,
    accumulate: Accumulate = 'ema',
    rms: float | None = 0.2,
) -> optax.GradientTransformation:
  """M3, multi-scale momentum Muon, on matrices (NL §7.2, Algorithm 1).

      M1 <- b1 M1 + (1 - b1) g             V <- b2 V + (1 - b2) g^2
      M2 <- b3 M2 + (1 - b3) mean(g)       O2 = NS(M2)    once in `period` steps
      D = (NS(M1) + slow_weight O2) / (sqrt(V^) + eps)
      update = rms D / rms(D)

  O2 is made once at the start of a period, from the gradients before it, and
  used until the next. V^ is bias-corrected.

  Not specified by the paper: every number. As printed nothing decays
  (accumulate='sum': M1 <- M1 + b1 g, V <- V + b2 g^2, M2 <- M2 + b3 sum(g)),
  and an orthogonal matrix is divided by the units of the gradient, which leaves
  the size of a step to chance: hence the root mean square `rms` of a step by
  default, that of AdamW; None is the printed size.

  Args:
    b1: decay of the fast momentum.
    b2: decay of the second moment.
    b3: decay of the slow momentum, a period.
    slow_weight: the paper's alpha.
    period: the paper's f, steps between two updates of M2.
    ns_steps: Newton-Schulz iterations.
    eps: added to the root of the second moment.
    accumulate: 'ema' or 'sum', see above.
    rms: root mean square of each matrix's update, or None.

  Returns:
    A transformation with an `M3State`: four copies of the parameters. A zero
    gradient gives a zero update; NaN stays in its matrix.

  Raises:
    ValueError: an option out of range, or at init a leaf that is no matrix.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §7.2, Algorithm 1.

    Jordan, `modded-nanogpt <https://github.com/KellerJordan/modded-nanogpt>`_,
    2024: Muon.
  """
  _check(accumulate, period=period)

  def update(updates, state, params=None):
    del params
    count = state.count
    fast = _blend(state.fast, updates, b1, accumulate)
    second = _blend(state.second, updates, b2, accumulate, jnp.square)
    slow = _advance(
        state.slow, updates, count, period, b3, accumulate,
        lambda memory, _: _orthogonalize(memory, ns_steps),
    )
    ema = accumulate == 'ema'
    debias = _debias(b2, count + 1) if ema else 1.0

    def direction(g, o1, o2, v):
      d = (o1 + slow_weight * o2) / (jnp.sqrt(v * debias) + eps)
      # Where no gradient ever came there is nothing to divide, and no step.
      d = jnp.where(v == 0, 0, d) if ema else d
      return (d if rms is None else _with_rms(d, rms)).astype(g.dtype)

    updates = jax.tree.map(
        direction, updates, _orthogonalize(fast, ns_steps), slow.read, second
    )
    return updates, M3State(count + 1, fast, slow, second)

  return optax.GradientTransformation(_start_m3, update)


def _start_m3(params: PyTree) -> M3State:
  leaves.require_matrices(params, 'M3')
  return M3State(
      jnp.zeros([], jnp.int32),
      leaves.zeros(params),
      SlowLevel(leaves.zeros(params), leaves.zeros(params)),
      leaves.zeros(params),
  )


def _orthogonalize(tree: PyTree, steps: int) -> PyTree:
  return jax.tree.map(
      lambda m: newton_schulz.orthogonalize(m, steps=steps), tree
  )


def _with_rms(d: Array, rms: float) -> Array:
  """Each matrix of [..., in, out] with this root mean square; zero stays so."""
  square = jnp.mean(d * d, axis=(-2, -1), keepdims=True)
  return d * jnp.where(
      square == 0, 0, rms / jnp.sqrt(jnp.where(square == 0, 1, square))
  )


def m3(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9,
    slow_weight: float = 0.5,
    period: int = 10,
    ns_steps: int = 5,
    eps: float = 1e-8,
    accumulate: Accumulate = 'ema',
    rms: float | None = 0.2,
    weight_decay: float = 0.0,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    label_fn: leaves.LabelFn | None = None,
    stacked: leaves.Stacked = None,
) -> optax.GradientTransformationExtraArgs:
  """M3 for matrices, AdamW for everything else; see `scale_by_m3`.

  Args:
    learning_rate: number or schedule.
    b1: decay of the fast momentum.
    b2: decay of the second moment.
    b3: decay of the slow momentum, a period.
    slow_weight: share of the slow momentum.
    period: steps between two updates of the slow momentum.
    ns_steps: Newton-Schulz iterations.
    eps: added to the root of the second moment.
    accumulate: 'ema', or 'sum' as printed.
    rms: root mean square of a matrix's update before the learning rate; None as
      printed.
    weight_decay: decoupled, on matrices.
    adam_learning_rate: of the other leaves; None: the same.
    adam_b1: decay of their first moment.
    adam_b2: decay of their second moment.
    label_fn: parameters -> a tree of 'matrix' and 'other'. None goes by shape
      and name, see `matrix_labels`.
    stacked: names of the modules whose parameters are stacked over layers; see
      `matrix_labels`.

  Returns:
    A transformation.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.m3(0.05)
    >>> params = {'w': jnp.ones((4, 3)), 'bias': jnp.ones(3)}
    >>> loss = lambda p: jnp.sum(p['w'] ** 2) + jnp.sum(p['bias'] ** 2)
    >>> state = tx.init(params)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(120):
    ...   updates, state = update(jax.grad(loss)(params), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> bool(loss(params) < 0.1)
    True
  """
  direction = scale_by_m3(
      b1=b1, b2=b2, b3=b3, slow_weight=slow_weight, period=period,
      ns_steps=ns_steps, eps=eps, accumulate=accumulate, rms=rms,
  )
  return leaves.beside_adamw(
      direction, learning_rate, weight_decay=weight_decay,
      adam_learning_rate=adam_learning_rate, label_fn=label_fn,
      stacked=stacked, b1=adam_b1, b2=adam_b2,
  )
