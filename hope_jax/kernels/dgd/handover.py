"""The recurrence over a sequence whose shards lie on several devices.

Where keys, rates and values do not depend on the state, all that a shard of the
sequence does with the state S it is handed is affine in S:

    state at its end  S' = B + A S      A = prod_t (alpha_t I - eta_t k_t k_t^T)
    outputs           O  = O_0 + R S    R_t = (A of the tokens before t)^T q_t

The shard need not wait for S to know the four: one run of the recurrence on two
memories side by side, from [0 | I] and with writes [u | 0], reads [O_0 | R] and
ends in [B | A]. The maps (A, B) of all shards are then gathered, each shard
applies those ahead of it to the initial state, and adds R S to its outputs.
Nothing is approximated, and all of it is differentiated as it stands.

Segments restart from the reset state, in the shards as in the recurrence: a
shard maps the state that it was handed only where no segment starts in it, and
is handed the reset state where the segment ahead of it ends with the shard.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd import segments
from hope_jax.kernels.dgd.products import Precision, matmul
from hope_jax.kernels.dgd.reference import Packed
from hope_jax.types import Array


def recurrence(
    run: Callable[..., tuple[Array, tuple[Array, ...]]],
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    packed: Packed | None,
    *,
    axis_name: Any,
    tile: int,
    precision: Precision,
) -> tuple[Array, tuple[Array, ...]]:
  """`api.dgd_recurrence` inside a `shard_map` that splits the sequence.

  Args:
    run: the recurrence on one device, an `implementations.Run` whose options
      are set.
    q: this shard's queries, [B, T / shards, H, K].
    k: keys; then u, eta, log_alpha and segments, of the shard too.
    u: write values.
    eta: write strengths.
    log_alpha: log retentions.
    state: before the first token of the first shard, the same on all devices.
    packed: the segments, or None.
    axis_name: the mesh axis, or axes, over which the sequence lies.
    tile: must divide T / shards for 'chunk' reads.
    precision: as in `chunked.chunk_step`.

  Returns:
    The shard's outputs, and the state after the last shard, on all devices.
  """
  batch, length, heads, key_dim = k.shape
  value_dim = u.shape[-1]
  borders = None
  # R is an output beside O_0: it is as exact as the products that made it.
  values = u if precision == 'bf16' else u.astype(state.dtype)
  values = jnp.pad(values, ((0, 0),) * 3 + ((0, key_dim),))
  eye = jnp.broadcast_to(
      jnp.eye(key_dim, dtype=state.dtype), (batch, heads, key_dim, key_dim)
  )
  start = jnp.concatenate([jnp.zeros_like(state), eye], axis=-1)
  if packed is not None:
    borders, ahead = _borders(packed.segment_ids, axis_name)
    reset = packed.reset
    reset = jnp.zeros_like(state) if reset is None else reset
    packed = Packed(packed.segment_ids, start, ahead)
  o, maps = run(q, k, values, eta, log_alpha, start, packed)

  def shard(states, xs):
    """carry: states that a shard leaves; xs: the maps and borders of the next.

    Yields the states that the shard is handed.
    """
    maps, borders = xs
    entering = base = states[0]
    if borders is not None:
      restarts, whole = (x[:, None, None, None] for x in borders)
      entering = jnp.where(restarts, reset, entering)
      base = jnp.where(whole, entering, reset)
    left = tuple(
        x[..., :value_dim] + matmul(x[..., value_dim:], base, 'float32')
        for x in maps
    )
    return left, (entering, *states[1:])

  maps = jax.lax.all_gather(maps, axis_name)
  states = (state,) * len(maps)
  last, entering = jax.lax.scan(shard, states, (maps, borders))
  index = jax.lax.axis_index(axis_name)
  entering, *at_chunk = (x[index] for x in entering)

  def read_from(state, rows):
    rows = jnp.swapaxes(rows, 1, 2).astype(state.dtype)
    return jnp.swapaxes(matmul(rows, state, precision), 1, 2)

  o, rows = o[..., :value_dim], o[..., value_dim:]
  more = read_from(entering, rows)
  if packed is not None:
    where = segments.locate(packed.segment_ids, tile, ahead)
    goes_on = (where.first <= 0)[..., None, None]
    more = jnp.where(goes_on, more, read_from(reset, rows))
  o = o + more
  if at_chunk:  # tokens whose chunk starts in the shard ahead
    earlier = (where.boundary < 0)[..., None, None]
    o = jnp.where(earlier, read_from(at_chunk[0], q), o)
  return o.astype(u.dtype), last[:1]


def _borders(
    segment_ids: Array, axis_name: Any
) -> tuple[tuple[Array, Array], Array]:
  """Where segments start, as far as other shards need to know.

  Returns:
    For all shards, [shards, B] bool: whether a segment starts with the shard,
    and whether none starts inside it. For this one, [B]: how many tokens of its
    first segment lie in the shards ahead.
  """
  length = segment_ids.shape[1]
  last_start = segments.locate(segment_ids, 1).first[:, -1]
  first, last, last_start = jax.lax.all_gather(
      (segment_ids[:, 0], segment_ids[:, -1], last_start), axis_name
  )
  restarts = jnp.pad(first[1:] != last[:-1], ((1, 0), (0, 0)))
  whole = last_start == 0

  def shard(ahead, xs):
    """carry: tokens so far of the last segment of a shard; xs: of the next."""
    restarts, whole, last_start = xs
    ahead = jnp.where(restarts, 0, ahead)
    return length - last_start + jnp.where(whole, ahead, 0), ahead

  _, ahead = jax.lax.scan(
      shard, jnp.zeros_like(last_start[0]), (restarts, whole, last_start)
  )
  return (restarts, whole), ahead[jax.lax.axis_index(axis_name)]
