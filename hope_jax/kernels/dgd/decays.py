"""What retention leaves of a state and of each write, from token to token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.products import (
  Precision,
  column,
  column_by_sum,
  matmul,
  prefix,
  transpose,
)
from hope_jax.types import Array


class Decay(NamedTuple):
  """What is left, just before each token, of the state and of each write."""

  enter: Array  # [..., C, 1], of the state that entered: e^p
  keep: Array  # [..., C, C], of the write of token s < t; else 0
  alpha: Array  # [..., C, 1], the token's own retention


class Flow(NamedTuple):
  """How momentum reaches a state: S_t = mu_t S_{t-1} + (1 - mu_t) w_t k_t^T."""

  share: Array  # [..., C, 1], 1 - mu
  decay: Decay  # of the momentum itself
  present: Array  # [..., C, 1], whether there is a token
  reach: Array  # [..., C, C], how much of write s has reached M_{t-1}
  inflow: Array  # [..., C, 1], how much of the momentum that entered has


def _later(x: Array) -> Array:
  """One step later along the last axis, 0 ahead."""
  return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def _before(size: int) -> Array:
  """[C, C] bool: s < t, rows t, columns s."""
  index = jnp.arange(size)
  return index[:, None] > index[None, :]


def between_fast(x: Array) -> Array:
  """`between` as the difference of two cumulated sums: to 1e-7 of the sums."""
  total = prefix(x)
  return column(_later(total)) - total[..., None, :]


@jax.custom_jvp
def between(x: Array) -> Array:
  """Sums of x [..., C] over the tokens between s and t, [..., C, C] (s < t).

  As a difference of two cumulated sums they would lose the digits that the sums
  share, so what rounding has taken from the sums is cumulated too and put back.
  The derivative sums its own terms, by a product with a triangle.
  """
  total = prefix(x)
  lost = prefix(x - (total - _later(total)))
  return (column(_later(total)) - total[..., None, :]) + (
      column(_later(lost)) - lost[..., None, :]
  )


@between.defjvp
def _between_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  before = _before(x.shape[-1])
  terms = jnp.where(before, column_by_sum(dx), 0)
  ones = jnp.broadcast_to(before.astype(x.dtype), terms.shape)
  return between(x), jnp.matmul(ones, terms, precision='highest')


def decay(log_alpha: Array, precision: Precision = 'float32') -> Decay:
  """`Decay` of log retentions; shared by states that decay alike.

  Args:
    log_alpha: [..., C], <= 0 and finite.
    precision: as in `chunk_step`.
  """
  before = _before(log_alpha.shape[-1])
  sums = between if precision == 'float32' else between_fast
  # Masked before exp: the others would be exp of a positive number.
  keep = jnp.exp(jnp.where(before, sums(log_alpha), 0))
  return Decay(
      column(jnp.exp(_later(prefix(log_alpha)))),
      jnp.where(before, keep, 0),
      column(jnp.exp(log_alpha)),
  )


def after(kept: Decay) -> tuple[Array, Array]:
  """What is left just after each token: `Decay.enter` and `Decay.keep` of it.

  [..., C, 1], and [..., C, C] with 1 where s = t.
  """
  own = jnp.eye(kept.keep.shape[-1], dtype=kept.keep.dtype)
  return kept.alpha * kept.enter, kept.alpha * kept.keep + own


def leave(kept: Decay) -> tuple[Array, Array]:
  """The last row of `after`: [..., 1, 1] and [..., 1, C]."""
  size = kept.keep.shape[-1]
  own = (jnp.arange(size) == size - 1).astype(kept.keep.dtype)
  enter, keep, alpha = (x[..., -1:, :] for x in kept)
  return enter * alpha, keep * alpha + own


def flow(
    kept: Decay, log_mu: Array, present: Array, precision: Precision
) -> Flow:
  """`Flow` of momentum with log gates [..., C] into a state.

  Args:
    kept: decay of the state.
    log_mu: <= 0.
    present: [..., C], 1; or 0: M_t takes no S_t (and log_mu must be 0).
    precision: as in `chunk_step`.

  Returns:
    With A = kept.keep and B that of the momentum after each token, reach = A B
    and inflow = A e^m, both summed over tokens that are present.
  """
  own = decay(log_mu, precision)
  enter, keep = after(own)
  taken = kept.keep * present[..., None, :]
  reach = matmul(taken, keep, precision)
  inflow = jnp.sum(taken * transpose(enter), axis=-1, keepdims=True)
  # 1 - mu: as -expm1(log mu) it keeps its digits near mu = 1, and no kernel
  # compiler knows expm1.
  share = column(jnp.tanh(-0.5 * log_mu) * (1 + jnp.exp(log_mu)))
  return Flow(share, own, column(present), reach, inflow)


def flow_after(flowing: Flow, alpha: Array, last: bool) -> tuple[Array, Array]:
  """`Flow.inflow` and `Flow.reach` just after each token, or the last one.

  A token adds what is left of each write in the momentum of that moment.
  """
  rows = slice(-1, None) if last else slice(None)
  enter, keep = (leave if last else after)(flowing.decay)
  alpha, present, reach, inflow = (
      x[..., rows, :]
      for x in (alpha, flowing.present, flowing.reach, flowing.inflow)
  )
  return alpha * inflow + present * enter, alpha * reach + present * keep
