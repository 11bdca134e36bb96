"""`dgd_recurrence`: the one entry to the delta gradient descent recurrence."""

import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hope_jax.kernels.dgd import handover
from hope_jax.kernels.dgd.implementations import (
  Problem,
  choose,
  require_known,
)
from hope_jax.kernels.dgd.products import Precision
from hope_jax.kernels.dgd.reference import Packed, Read
from hope_jax.types import Array

SaveStates = Literal['auto', 'hbm', 'recompute']

# Retention below e^-30 is nothing; the floor keeps sums of log alpha finite.
MIN_LOG_ALPHA = -30.0
# The tile of 'chunk' reads is a modelling choice, so its default is one number;
# for the other reads it is a matter of speed, the implementation's own.
CHUNK_READ_TILE = 16


def dgd_recurrence(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array | None = None,
    *,
    read: Read = 'pre',
    tile: int | None = None,
    erase: bool = True,
    segment_ids: Array | None = None,
    reset: Array | None = None,
    precision: Precision = 'float32',
    implementation: str = 'auto',
    save_states: SaveStates = 'auto',
    partition: PartitionSpec | None = None,
    interpret: Any = False,
) -> tuple[Array, Array]:
  """Delta gradient descent on a matrix memory, over a whole sequence.

  For each token, with S = M^T of the paper (NL Eq. 57 with the retention of
  Eq. 88; u is the negative inner gradient at the memory's output):

      M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) + eta_t u_t k_t^T

  This contracts for |u| bounded while 0 <= eta |k|^2 <= 1 + alpha. The result
  does not depend on `tile` unless read is 'chunk'. A token with eta = 0 and
  log_alpha = 0 writes and forgets nothing: so is padding to be given.

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
    erase: whether the delta decay -eta M k k^T acts; without it a write only
      adds, as in linear attention, and alpha alone forgets.
    segment_ids: [B, T] int; where the id changes, the state restarts from
      `reset`, as if the segment were given alone.
    reset: the state that segments start from, [B, H, K, V]; None: `state`. The
      first segment goes on from `state` in any case.
    precision: 'float32' (exact products), or 'bf16': bfloat16 operands of the
      products, float32 sums, gates and state. float64 inputs stay float64.
    implementation: a name of `implementations.IMPLEMENTATIONS`. 'xla' is the
      chunk-parallel form, 'reference' the token-serial one, 'pallas_tpu' the
      chunk-parallel form as a TPU kernel (K in 64, 128, 256, V at most 256;
      tiles of 16, 32, ... 128); 'auto' the fastest that runs on this platform.
    save_states: how the kernel's backward pass comes by the state of each tile:
      'hbm' saves them, 'recompute' computes them anew, 'auto' chooses.
    partition: how the mesh that is set splits batch and heads, for example
      P('data', 'tensor'). Every device then runs its rows and heads alone,
      without communication; kernels cannot be split in any other way. A third
      axis, as in P('data', 'tensor', 'sequence'), splits the sequence: see
      `handover`. A kernel then takes values that are K wider.
    interpret: True, or pltpu.InterpretParams(): the kernel runs emulated, for
      tests on any platform.

  Returns:
    Outputs [B, T, H, V] in u's dtype, and the final state [B, H, K, V] in
    float32 (float64 if any input is).

  Raises:
    ValueError: for shapes that do not fit together, an unknown option, an
      implementation that cannot run here, or a sequence that the mesh does not
      divide (for 'chunk' reads, into whole tiles).
  """
  _validate(q, k, u, eta, log_alpha, state, segment_ids, reset)
  for name, value, known in (
      ('read', read, get_args(Read)),
      ('precision', precision, get_args(Precision)),
      ('save_states', save_states, get_args(SaveStates)),
  ):
    if value not in known:
      raise ValueError(f'{name} must be one of {known}; got {value!r}')
  require_known(implementation)
  if tile is not None and tile < 1:
    raise ValueError(f'tile must be at least 1; got tile={tile}')
  b, t, h, key_dim = k.shape
  inputs = (q, k, u, eta, log_alpha, *(() if state is None else (state,)))
  dtype = jnp.promote_types(jnp.result_type(*inputs), jnp.float32)
  if dtype == jnp.float64 and precision == 'bf16':
    raise ValueError("precision='bf16' is not for float64 inputs")
  packed = None
  if segment_ids is not None:
    reset = state if reset is None else reset
    packed = Packed(segment_ids, None if reset is None else reset.astype(dtype))
  if state is None:
    state = jnp.zeros((b, h, key_dim, u.shape[-1]), dtype)
  state = state.astype(dtype)
  eta = eta.astype(dtype)
  log_alpha = jnp.maximum(log_alpha.astype(dtype), MIN_LOG_ALPHA)
  if t == 0:
    return jnp.zeros(u.shape, u.dtype), state
  of_batch, of_heads, of_sequence = (*(partition or ()), *(None,) * 3)[:3]
  # A shard carries its map of states beside the state: K columns more.
  width = u.shape[-1] + (0 if of_sequence is None else key_dim)
  if read == 'chunk' and tile is None:
    tile = CHUNK_READ_TILE
  chosen, tile = choose(
      implementation,
      lambda tile: Problem(key_dim, width, tile, dtype, interpret),
      tile=tile, length=t,
  )
  run = functools.partial(
      chosen.run, read=read, tile=tile, erase=erase, precision=precision,
      save_states=save_states, interpret=interpret,
  )
  args = (q, k, u, eta, log_alpha, state, packed)
  if partition is None:
    o, (final, *_) = run(*args)
    return o, final
  if of_sequence is not None:
    _check_sequence(of_sequence, t, read, tile)
    run = functools.partial(
        handover.recurrence, run, axis_name=of_sequence, tile=tile,
        precision=precision,
    )
  tokens = PartitionSpec(of_batch, of_sequence, of_heads)
  matrices = PartitionSpec(of_batch, of_heads)
  ids = PartitionSpec(of_batch, of_sequence)
  o, (final, *_) = jax.shard_map(
      run,
      in_specs=(
          *(tokens,) * 5, matrices,
          jax.tree.map(lambda x: ids if x.ndim == 2 else matrices, packed),
      ),
      out_specs=(tokens, matrices),
      # What a kernel returns does not say over which axes it varies.
      check_vma=False,
  )(*args)
  return o, final


def _check_sequence(axes, length: int, read: Read, tile: int) -> None:
  """Raises ValueError where the mesh cannot split the sequence over `axes`."""
  mesh = jax.sharding.get_abstract_mesh()
  names = (axes,) if isinstance(axes, str) else axes
  shards = math.prod(mesh.shape[name] for name in names)
  if length % shards:
    raise ValueError(
        f'T must be a multiple of the {shards} devices of mesh axis {axes!r};'
        f' got T={length}'
    )
  if read == 'chunk' and length // shards % tile:
    raise ValueError(
        f'tile must divide the {length // shards} tokens of each of the'
        f" {shards} devices of mesh axis {axes!r} if read is 'chunk'; got"
        f' tile={tile}'
    )


def dgd_step(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    *,
    read: Literal['pre', 'post'] = 'pre',
) -> tuple[Array, Array]:
  """One token of `dgd_recurrence`, for decoding.

  The state is read and written once, which is all the time it takes: plain JAX
  is the kernel. Jit it with the state donated.

  Args:
    q: queries, [B, H, K].
    k: keys, [B, H, K].
    u: write values, [B, H, V].
    eta: write strengths, [B, H].
    log_alpha: log of the retention, [B, H].
    state: the state before the token, [B, H, K, V].
    read: 'pre' or 'post'. ('chunk' reads need the state at the chunk's start:
      keep that, and read it by a product.)

  Returns:
    Outputs [B, H, V] in u's dtype, and the state after the token.
  """
  if read not in ('pre', 'post'):
    raise ValueError(f"read must be one of ('pre', 'post'); got {read!r}")
  _validate(
      *(x[:, None] for x in (q, k, u, eta, log_alpha)), state=state
  )
  dtype = jnp.promote_types(state.dtype, jnp.float32)
  args = [x.astype(dtype) for x in (q, k, u, eta, log_alpha)]
  alpha = jnp.exp(jnp.maximum(args[-1], MIN_LOG_ALPHA))[..., None, None]
  state = state.astype(dtype)
  query, key, value, rate = args[:4]
  rows = jnp.stack([key, query], axis=-2)
  retrieved = jnp.matmul(rows, state, precision='highest')
  error = rate[..., None] * (value - retrieved[..., 0, :])
  new = alpha * state + key[..., :, None] * error[..., None, :]
  o = retrieved[..., 1, :]
  if read == 'post':  # M_t q = alpha M_{t-1} q + e (k . q)
    overlap = jnp.sum(key * query, axis=-1, keepdims=True)
    o = alpha[..., 0] * o + overlap * error
  return o.astype(u.dtype), new


def _validate(
    q, k, u, eta, log_alpha, state, segment_ids=None, reset=None
) -> None:
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
      'reset': (reset, (b, h, key_dim, value_dim)),
  }
  for name, (x, shape) in expected.items():
    if x is not None and x.shape != shape:
      raise ValueError(
          f'{name} must have shape {shape}, as k has {k.shape}; got {x.shape}'
      )
