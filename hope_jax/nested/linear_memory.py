"""Matrix memories with given keys and values: the relatives of DGD.

One recurrence, read after the token's own write (NL §5, Table 1),

    M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) + eta_t u_t k_t^T,
    o_t = M_t q_t,

is each of these, by what it is given; the first two leave out the erasure
-eta_t M_{t-1} k_t k_t^T:

| rule             | alpha_t     | eta_t          | u_t           | erases |
|------------------|-------------|----------------|---------------|--------|
| linear_attention | 1           | 1              | [v_t, 1]      | no     |
| retnet           | gamma_h     | 1              | v_t           | no     |
| deltanet         | 1           | beta_t         | v_t           | yes    |
| gated_deltanet   | alpha_t     | alpha_t beta_t | v_t / alpha_t | yes    |

Linear attention divides the answer by its last entry, the normaliser. All four
are `kernels.dgd.api.dgd_recurrence`, and so run as its kernel on a TPU.

Sources: arXiv 2006.16236 (linear attention), 2307.08621 (RetNet, Eq. 6 and
gamma_h = 1 - 2^(-5-h)), 2406.06484 (DeltaNet), 2412.06464 (Gated DeltaNet).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hope_jax.kernels.dgd.api import MIN_LOG_ALPHA, dgd_recurrence
from hope_jax.kernels.dgd.products import Precision
from hope_jax.types import Array

ERASES = {
    'linear_attention': False,
    'retnet': False,
    'deltanet': True,
    'gated_deltanet': True,
}


class Writes(NamedTuple):
  """What the recurrence is given for each token."""

  u: Array  # [B, T, H, V]
  eta: Array  # [B, T, H]
  log_alpha: Array  # [B, T, H]


def added_writes(rule: str, v: Array) -> Writes:
  """The rows of the table above that do not erase.

  Args:
    rule: 'linear_attention' or 'retnet'.
    v: values, [B, T, H, V].

  Returns:
    u, with the normaliser's column of ones for 'linear_attention'; eta; log
    alpha.
  """
  one = jnp.ones_like(v[..., 0])
  if rule == 'linear_attention':
    return Writes(jnp.concatenate([v, one[..., None]], axis=-1), one, 0 * one)
  gamma = 1 - 2.0 ** (-5 - jnp.arange(v.shape[2], dtype=v.dtype))
  return Writes(v, one, jnp.log(gamma) * one)


def delta_writes(
    v: Array, beta: Array, log_alpha: Array | None = None
) -> Writes:
  """The rows of the table above that erase.

  Args:
    v: values, [B, T, H, V].
    beta: write strengths in [0, 2], [B, T, H].
    log_alpha: log retentions <= 0, [B, T, H], of 'gated_deltanet'; None:
      'deltanet'.
  """
  if log_alpha is None:
    return Writes(v, beta, jnp.zeros_like(v[..., 0]))
  # The recurrence's own bound, ahead of the division: v / 0 * 0 would be NaN.
  log_alpha = jnp.maximum(log_alpha, MIN_LOG_ALPHA)
  alpha = jnp.exp(log_alpha)
  return Writes(v / alpha[..., None], alpha * beta, log_alpha)


def layer(
    q: Array,
    k: Array,
    write: Writes,
    state: Array | None = None,
    *,
    erase: bool,
    starts: Array | None = None,
    present: Array | None = None,
    precision: Precision = 'float32',
    partition: PartitionSpec | None = None,
    implementation: str = 'auto',
    interpret: Any = False,
) -> tuple[Array, Array]:
  """Reads and writes a sequence, in chunk-parallel form.

  Args:
    q: queries, [B, T, H, K].
    k: keys, [B, T, H, K].
    write: values and rates.
    state: the memory before the first token, [B, H, K, V]; None: zero.
    erase: whether the delta decay acts.
    starts: [B, T] bool, where a document starts and the memory is zero again.
    present: [B, T] bool, false at padding, which writes and forgets nothing.
    precision: of the products, as in `dgd_recurrence`.
    partition: how the mesh that is set splits batch and heads.
    implementation: of `dgd_recurrence`; then interpret.
    interpret: whether a kernel is emulated.

  Returns:
    Outputs [B, T, H, V], and the memory after the last token.
  """
  u, eta, log_alpha = write
  if present is not None:
    eta, log_alpha = (
        jnp.where(present[..., None], x, 0) for x in (eta, log_alpha)
    )
  segment_ids = reset = None
  if starts is not None:
    segment_ids = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    if state is not None:
      # The first token starts a segment where no id is there to change.
      state = jnp.where(starts[:, :1, None, None], 0, state)
      reset = jnp.zeros_like(state)
  return dgd_recurrence(
      q, k, u, eta, log_alpha, state, read='post', erase=erase,
      segment_ids=segment_ids, reset=reset, precision=precision,
      partition=partition, implementation=implementation, interpret=interpret,
  )
