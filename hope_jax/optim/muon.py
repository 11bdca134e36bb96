"""Muon where optax's own does not reach: explicit meshes, bfloat16, stacks.

Muon is momentum read through Newton-Schulz: the linear memory of NL Eq. 52 with
an orthogonal output (Eq. 42-44). On one device, in float32, this is
`optax.contrib.muon` with the same defaults, number for number, and with the
dimension numbers that take each matrix of a stack [..., in, out] by itself, and
a kernel of Flax's attention or convolution as one. Two things differ. Matrices
that are sharded over explicit mesh axes are gathered for the iteration, where
optax's raises an error; and state is float32 whatever the parameters are.

AdaMuon divides Muon's direction by the root of its own second moment.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import dimensions, leaves, matrices, newton_schulz
from hope_jax.optim.momentum import one_of
from hope_jax.optim.precision import keeps_float32, root
from hope_jax.types import Array, PyTree


class MuonState(NamedTuple):
  """State of `scale_by_muon`."""

  count: Array  # int32 [], gradients seen
  momentum: PyTree  # m, like the parameters, float32 or wider


class AdaMuonState(NamedTuple):
  """State of `scale_by_adamuon`."""

  muon: PyTree  # MuonState
  second: PyTree  # v, like the parameters, float32 or wider


@keeps_float32
def scale_by_muon(
    *,
    beta: float = 0.95,
    ns_steps: int = 5,
    eps: float = 1e-8,
    nesterov: bool = True,
    consistent_rms: float | None = None,
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Momentum, orthogonalised (Jordan et al., 2024; NL Eq. 42-44, 52).

      m <- beta m + (1 - beta) g
      update = sqrt(max(1, out / in)) NS(beta m + (1 - beta) g)

  both terms bias-corrected as in optax; without Nesterov NS(m).

  Args:
    beta: what momentum keeps of itself.
    ns_steps: Newton-Schulz iterations.
    eps: added to the Frobenius norm.
    nesterov: whether the gradient is counted once more.
    consistent_rms: where given, an update has this root mean square, whatever
      its shape: the factor is consistent_rms sqrt(max(in, out)) instead.
    weight_dimension_numbers: as in `optax.contrib.muon`; None goes by shape and
      name, see `dimension_numbers`.

  Returns:
    A transformation with a `MuonState`. A zero gradient gives a zero update;
    NaN stays in its matrix.

  Raises:
    ValueError: at init, a leaf that is no matrix, or numbers not its axes.

  References:
    Jordan, `modded-nanogpt <https://github.com/KellerJordan/modded-nanogpt>`_,
    2024.

    Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, 2025: consistent_rms.

    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.2, Eq. 42-44, and §4.4, Eq. 52.
  """
  newton_schulz.check_steps(ns_steps)

  given = weight_dimension_numbers

  def init(params):
    matrices.require(params, 'Muon')
    matrices.numbers_for(params, given)
    return MuonState(jnp.zeros([], jnp.int32), leaves.zeros(params))

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    unbias = lambda n: 1 / (1 - jnp.asarray(beta, float) ** n)

    def absorb(g, m):
      return (beta * m + (1 - beta) * g).astype(m.dtype)

    def direction(g, m, one):
      ahead = unbias(count) * m
      if nesterov:
        once_more = unbias(count) * (1 - beta) * g
        ahead = beta * unbias(count + 1) * m + once_more
      o = newton_schulz.orthogonalize(
          ahead.astype(m.dtype), steps=ns_steps, eps=eps, numbers=one
      )
      height, width = dimensions.size(g.shape, one)
      scale = max(1, width / max(height, 1)) ** 0.5
      if consistent_rms is not None:
        scale = max(height, width) ** 0.5 * consistent_rms
      return scale * o

    momentum = jax.tree.map(absorb, updates, state.momentum)
    numbers = matrices.numbers_for(updates, given)
    updates = jax.tree.map(direction, updates, momentum, numbers)
    return updates, MuonState(count, momentum)

  return optax.GradientTransformation(init, update)


@keeps_float32
def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: float = 0.95,
    ns_steps: int = 5,
    eps: float = 1e-8,
    nesterov: bool = True,
    consistent_rms: float | None = None,
    weight_decay: float = 0.0,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    label_fn: matrices.LabelFn | None = None,
    stacked: leaves.Stacked = None,
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformationExtraArgs:
  """Muon for matrices, AdamW for everything else; see `scale_by_muon`.

  Args:
    learning_rate: number or schedule.
    beta: decay of the momentum.
    ns_steps: Newton-Schulz iterations.
    eps: of the Frobenius norm, and of Adam.
    nesterov: of both.
    consistent_rms: root mean square of a matrix's update; 0.2 is AdamW's. None:
      grows with out / in.
    weight_decay: decoupled, on matrices.
    adam_learning_rate: of the other leaves; None: the same.
    adam_b1: decay of their first moment.
    adam_b2: decay of their second moment.
    label_fn: parameters -> a tree of 'matrix' and 'other'. None goes by shape
      and name, see `matrix_labels`; optax's goes by two axes alone, and
      orthogonalises embeddings.
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
    >>> tx = optim.muon(0.02)
    >>> params = {'stack': jnp.ones((2, 4, 3)), 'bias': jnp.ones(3)}
    >>> loss = lambda p: jnp.sum(p['stack'] ** 2) + jnp.sum(p['bias'] ** 2)
    >>> state = tx.init(params)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(250):
    ...   updates, state = update(jax.grad(loss)(params), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> bool(loss(params) < 0.1)
    True
  """
  direction = functools.partial(
      scale_by_muon, beta=beta, ns_steps=ns_steps, eps=eps, nesterov=nesterov,
      consistent_rms=consistent_rms,
  )
  return matrices.beside_adamw(
      direction, learning_rate, weight_decay=weight_decay,
      adam_learning_rate=adam_learning_rate, label_fn=label_fn,
      stacked=stacked, weight_dimension_numbers=weight_dimension_numbers,
      b1=adam_b1, b2=adam_b2, eps=eps, nesterov=nesterov,
  )


@keeps_float32
def scale_by_adamuon(
    *,
    beta: float = 0.95,
    b2: float = 0.95,
    ns_steps: int = 5,
    eps: float = 1e-8,
    nesterov: bool = True,
    rms: float = 0.2,
    rms_over: Literal['matrix', 'leaf'] = 'matrix',
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Muon's direction o over the root of its second moment (Si et al., 2025).

      v <- b2 v + (1 - b2) o^2
      d = o / (sqrt(v^) + eps)
      update = rms d / rms(d)

  v^ is bias-corrected. In the terms of Nested Learning: the memory of Eq. 52,
  and behind it the diagonal preconditioner of Eq. 46-47.

  Args:
    beta: what momentum keeps of itself.
    b2: decay of the second moment.
    ns_steps: Newton-Schulz iterations.
    eps: of the Frobenius norm, and of the root.
    nesterov: whether the gradient is counted once more.
    rms: root mean square of an update; 0.2 is AdamW's.
    rms_over: of each matrix, or of a whole leaf, so that the matrices of a
      stack [..., in, out] share a factor.
    weight_dimension_numbers: as in `optax.contrib.muon`; None goes by shape and
      name, see `dimension_numbers`.

  Returns:
    A transformation with an `AdaMuonState`. A zero gradient gives a zero
    update; NaN stays in its matrix.

  Raises:
    ValueError: an unknown `rms_over`, or at init a leaf that is no matrix.

  References:
    Si et al., `AdaMuon <https://arxiv.org/abs/2507.11005>`_, 2025; Nesterov and
    the bias correction are ours.
  """
  one_of('rms_over', rms_over, ('matrix', 'leaf'))
  given = weight_dimension_numbers
  muon_direction = scale_by_muon(
      beta=beta, ns_steps=ns_steps, eps=eps, nesterov=nesterov,
      weight_dimension_numbers=given,
  )

  def init(params):
    return AdaMuonState(muon_direction.init(params), leaves.zeros(params))

  def update(updates, state, params=None):
    directions, inner = muon_direction.update(updates, state.muon, params)
    second = jax.tree.map(
        lambda o, v: b2 * v + (1 - b2) * jnp.square(o), directions, state.second
    )
    unbias = 1 - jnp.asarray(b2, float) ** (state.muon.count + 1)

    def adapt(o, v, numbers):
      d = o / (root(v / unbias) + eps)
      of_matrix = rms_over == 'matrix'
      return dimensions.with_rms(d, rms, numbers if of_matrix else None)

    numbers = matrices.numbers_for(updates, given)
    updates = jax.tree.map(adapt, directions, second, numbers)
    return updates, AdaMuonState(inner, second)

  return optax.GradientTransformation(init, update)


@keeps_float32
def adamuon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: float = 0.95,
    b2: float = 0.95,
    ns_steps: int = 5,
    eps: float = 1e-8,
    nesterov: bool = True,
    rms: float = 0.2,
    rms_over: Literal['matrix', 'leaf'] = 'matrix',
    weight_decay: float = 0.0,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    label_fn: matrices.LabelFn | None = None,
    stacked: leaves.Stacked = None,
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformationExtraArgs:
  """AdaMuon for matrices, AdamW for everything else; see `scale_by_adamuon`.

  Args:
    learning_rate: number or schedule.
    beta: decay of the momentum.
    b2: decay of the second moment.
    ns_steps: Newton-Schulz iterations.
    eps: of the Frobenius norm, of the root, and of Adam.
    nesterov: of Muon; Adam is plain.
    rms: root mean square of a matrix's update.
    rms_over: 'matrix', or 'leaf'; see `scale_by_adamuon`.
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
    >>> tx = optim.adamuon(0.1)
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
      scale_by_adamuon, beta=beta, b2=b2, ns_steps=ns_steps, eps=eps,
      nesterov=nesterov, rms=rms, rms_over=rms_over,
  )
  return matrices.beside_adamw(
      direction, learning_rate, weight_decay=weight_decay,
      adam_learning_rate=adam_learning_rate, label_fn=label_fn,
      stacked=stacked, weight_dimension_numbers=weight_dimension_numbers,
      b1=adam_b1, b2=adam_b2, eps=eps,
  )
