"""M3: multi-scale momentum Muon (NL §7.2, Eq. 75 and Algorithm 1).

Two levels of multi-scale momentum, orthogonalised as in Muon and divided by
Adam's second moment.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import dimensions, leaves, matrices, newton_schulz
from hope_jax.optim.multi_scale import (
    Accumulate,
    SlowLevel,
    advance,
    blend,
    check,
    debias,
)
from hope_jax.optim.precision import keeps_float32, root
from hope_jax.types import Array, PyTree


class M3State(NamedTuple):
  """State of `scale_by_m3`."""

  count: Array  # int32 [], gradients seen
  fast: PyTree  # M1, float32, like the parameters
  slow: SlowLevel  # M2 and O2
  second: PyTree  # V, float32


@keeps_float32
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
    weight_dimension_numbers: matrices.NumbersOf = None,
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
    weight_dimension_numbers: as in `optax.contrib.muon`; None goes by shape and
      name, see `dimension_numbers`.

  Returns:
    A transformation with an `M3State`: four copies of the parameters. A zero
    gradient gives a zero update; NaN stays in its matrix.

  Raises:
    ValueError: an option out of range, or at init a leaf that is no matrix.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §7.2, Algorithm 1.

    Jordan, `modded-nanogpt <https://github.com/KellerJordan/modded-nanogpt>`_.
  """
  check(accumulate, period=period)
  newton_schulz.check_steps(ns_steps)
  ema = accumulate == 'ema'
  given = weight_dimension_numbers

  def update(updates, state, params=None):
    del params
    count = state.count
    numbers = matrices.numbers_for(updates, given)
    fast = blend(state.fast, updates, b1, accumulate)
    second = blend(state.second, updates, b2, accumulate, jnp.square)
    sigma = lambda memory, _=0: _orthogonalize(memory, numbers, ns_steps)
    slow = advance(state.slow, updates, count, period, b3, accumulate, sigma)
    correction = debias(b2, count + 1) if ema else 1.0

    def direction(o1, o2, v, one):
      d = (o1 + slow_weight * o2) / (root(v * correction) + eps)
      # Where no gradient ever came there is nothing to divide, and no step.
      d = jnp.where(v == 0, 0, d) if ema else d
      return d if rms is None else dimensions.with_rms(d, rms, one)

    updates = jax.tree.map(direction, sigma(fast), slow.read, second, numbers)
    return updates, M3State(count + 1, fast, slow, second)

  return optax.GradientTransformation(functools.partial(_start, given), update)


def _start(given: matrices.NumbersOf, params: PyTree) -> M3State:
  matrices.require(params, 'M3')
  matrices.numbers_for(params, given)
  return M3State(
      jnp.zeros([], jnp.int32),
      leaves.zeros(params),
      SlowLevel(leaves.zeros(params), leaves.zeros(params)),
      leaves.zeros(params),
  )


def _orthogonalize(tree: PyTree, numbers: PyTree, steps: int) -> PyTree:
  return jax.tree.map(
      lambda m, one: newton_schulz.orthogonalize(m, steps=steps, numbers=one),
      tree, numbers,
  )


@keeps_float32
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
    label_fn: matrices.LabelFn | None = None,
    stacked: leaves.Stacked = None,
    weight_dimension_numbers: matrices.NumbersOf = None,
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
    weight_dimension_numbers: which axes of a leaf are in and out, as in
      `optax.contrib.muon`; None for a leaf leaves it to AdamW; None for
      all goes by shape and name, see `dimension_numbers`.

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
  direction = functools.partial(
      scale_by_m3, b1=b1, b2=b2, b3=b3, slow_weight=slow_weight, period=period,
      ns_steps=ns_steps, eps=eps, accumulate=accumulate, rms=rms,
  )
  return matrices.beside_adamw(
      direction, learning_rate, weight_decay=weight_decay,
      adam_learning_rate=adam_learning_rate, label_fn=label_fn,
      stacked=stacked, weight_dimension_numbers=weight_dimension_numbers,
      b1=adam_b1, b2=adam_b2,
  )
