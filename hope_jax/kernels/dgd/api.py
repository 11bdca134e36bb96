"""`dgd_recurrence`: the one entry to the delta gradient descent recurrence."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd import chunked, reference, segments
from hope_jax.types import Array

Implementation = Literal['auto', 'reference', 'xla', 'pallas_tpu']
Precision = Literal['float32', 'bf16']

# Retention below e^-30 is nothing; the floor keeps sums of log alpha finite.
MIN_LOG_ALPHA = -30.0
# The tile of 'chunk' reads is a modelling choice, so its default is one number;
# for the other reads it is a matter of speed (see `default_tile`).
CHUNK_READ_TILE = 16


def default_tile(key_dim: int) -> int:
  """Tokens a tile of the XLA path: measured best on CPU, wider elsewhere."""
  if jax.default_backend() == 'cpu':
    return 16 if key_dim <= 64 else 32
  return 64


def dgd_recurrence(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array | None = None,
    *,
    read: Literal['pre', 'post', 'chunk'] = 'pre',
    tile: int | None = None,
    segment_ids: Array | None = None,
    precision: Precision = 'float32',
    implementation: Implementation = 'auto',
) -> tuple[Array, Array]:
  """Delta gradient descent on a matrix memory, over a whole sequence.

  For each token, with S = M^T of the paper (NL Eq. 57 with the retention of
  Eq. 88; u is the negative inner gradient at the memory's output):

      M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) + eta_t u_t k_t^T

  This contracts for |u| bounded while 0 <= eta |k|^2 <= 1 + alpha. The result
  does not depend on `tile` unless read is 'chunk'.

  Args:
    q: queries, [B, T, H, K], float32, bfloat16 or float64.
    k: keys, [B, T, H, K].
    u: write values, [B, T, H, V].
    eta: write strengths >= 0, [B, T, H].
    log_alpha: log of the retention, <= 0, [B, T, H]; values below -30 count as
      -30, so that -inf (alpha = 0) is allowed.
    state: state before the first token, [B, H, K, V]; None is zero.
    read: 'pre' reads M_{t-1} q_t, 'post' M_t q_t, 'chunk' M_c q_t with c the
      last multiple of `tile` from the segment's start.
    tile: tokens processed together; need not divide T. None: 16 for 'chunk'
      reads, otherwise chosen for speed.
    segment_ids: [B, T] int; where the id changes, the state restarts from
      `state`, as if the segment were given alone.
    precision: 'float32' (exact products), or 'bf16': bfloat16 operands of the
      products, float32 sums, gates and state. float64 inputs stay float64.
    implementation: 'xla' is the chunk-parallel form, 'reference' the
      token-serial one, 'auto' the fastest that runs on this platform.

  Returns:
    Outputs [B, T, H, V] in u's dtype, and the final state [B, H, K, V] in
    float32 (float64 if any input is).

  Raises:
    ValueError: for shapes that do not fit together, an unknown option, or an
      implementation that cannot run here.
  """
  _validate(q, k, u, eta, log_alpha, state, segment_ids)
  for name, value, kind in (
      ('read', read, Literal['pre', 'post', 'chunk']),
      ('precision', precision, Precision),
      ('implementation', implementation, Implementation),
  ):
    if value not in get_args(kind):
      raise ValueError(f'{name} must be one of {get_args(kind)}; got {value!r}')
  if tile is not None and tile < 1:
    raise ValueError(f'tile must be at least 1; got tile={tile}')
  if implementation == 'pallas_tpu':
    raise ValueError(
        "implementation='pallas_tpu': the TPU kernel is not written yet; use"
        " 'auto', 'xla' or 'reference'"
    )
  b, t, h, key_dim = k.shape
  inputs = (q, k, u, eta, log_alpha, *(() if state is None else (state,)))
  dtype = jnp.promote_types(jnp.result_type(*inputs), jnp.float32)
  if dtype == jnp.float64 and precision == 'bf16':
    raise ValueError("precision='bf16' is not for float64 inputs")
  if state is None:
    state = jnp.zeros((b, h, key_dim, u.shape[-1]), dtype)
  state = state.astype(dtype)
  log_alpha = jnp.maximum(log_alpha.astype(dtype), MIN_LOG_ALPHA)
  q, k, v = (x.astype(dtype) for x in (q, k, u))
  args = (q, k, v, eta.astype(dtype), log_alpha, state)
  if tile is None:
    tile = CHUNK_READ_TILE if read == 'chunk' else default_tile(key_dim)
  if t == 0:
    return jnp.zeros(u.shape, u.dtype), state
  if implementation == 'reference':
    ids = jnp.zeros((b, t), jnp.int32) if segment_ids is None else segment_ids
    o, state = reference.recurrence(
        *args, read=read, tile=tile, segment_ids=ids
    )
  elif segment_ids is None:
    o, state = chunked.chunk_scan(
        *args, read=read, tile=tile, precision=precision
    )
  else:
    o, state = segments.segment_scan(
        *args, segment_ids, read=read, tile=tile, precision=precision
    )
  return o.astype(u.dtype), state


def _validate(q, k, u, eta, log_alpha, state, segment_ids) -> None:
  """Raises ValueError naming the first argument whose shape does not fit."""
  if k.ndim != 4:
    raise ValueError(f'k must be [B, T, H, K]; got shape {k.shape}')
  b, t, h, key_dim = k.shape
  value_dim = u.shape[-1] if u.ndim == 4 else 'V'
  expected = {
      'q': (q, (b, t, h, key_dim)),
      'u': (u, (b, t, h, value_dim)),
      'eta': (eta, (b, t, h)),
      'log_alpha': (log_alpha, (b, t, h)),
      'state': (state, (b, h, key_dim, value_dim)),
      'segment_ids': (segment_ids, (b, t)),
  }
  for name, (x, shape) in expected.items():
    if x is not None and x.shape != shape:
      raise ValueError(
          f'{name} must have shape {shape}, as k has {k.shape}; got {x.shape}'
      )
