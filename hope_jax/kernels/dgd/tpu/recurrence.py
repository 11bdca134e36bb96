"""The DGD recurrence as a TPU kernel: `chunked.chunk_step` in a `tile_scan`."""

import functools
from typing import Any

import jax.numpy as jnp

from hope_jax.kernels.dgd import chunked, segments
from hope_jax.kernels.dgd.devices import device
from hope_jax.kernels.dgd.products import Precision, leading_half
from hope_jax.kernels.dgd.reference import Packed, Read
from hope_jax.kernels.dgd.tpu import block_sizes, planning
from hope_jax.kernels.dgd.tpu.tile_scan import tile_scan
from hope_jax.types import Array


def default_tile(key_dim: int, length: int) -> int:
  """The tile of the table; a short text is one tile."""
  del key_dim
  best = block_sizes.chip(device()[1]).tile
  return min(best, -(-length // 16) * 16)


def recurrence(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    packed: Packed | None,
    *,
    read: Read,
    tile: int,
    erase: bool,
    precision: Precision,
    save_states: str,
    interpret: Any,
) -> tuple[Array, tuple[Array, ...]]:
  """`implementations.Run`; q, k and u are read in the dtype they come in.

  Values are padded with zeros to a width that the kernel takes: linear
  attention has one column more than keys have.
  """
  batch, length, heads, _ = k.shape
  value_dim = u.shape[-1]
  width = next(w for w in planning.WIDTHS if w >= value_dim)

  def widen(x):
    missing = width - value_dim
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])

  u, state = widen(u), widen(state)
  params, marks, carry = (), (), (state,)
  step, keep = _step, None
  if packed is not None:
    params = () if packed.reset is None else (widen(packed.reset),)
    where = segments.tile_positions(packed.segment_ids, tile, packed.ahead)
    marks = segments.Positions(*(
        jnp.broadcast_to(x[..., None], (*x.shape, heads)) for x in where
    ))
    # Only a 'chunk' read looks back to a chunk's start.
    carry = (state, state) if read == 'chunk' else (state,)
    step = _segment_step
  elif erase:
    keep = functools.partial(_keep, precision=precision)
  xs = q, k, u, eta, log_alpha
  plan = planning.plan(
      planning.Sizes(
          tile=tile,
          vectors=tuple(x.shape[-1] for x in (q, k, u, u)),
          matrices=(params, carry),
          itemsize=jnp.dtype(u.dtype).itemsize,
          save_states=save_states,
          interpret=interpret,
      ),
      batch=batch, length=length, heads=heads,
  )
  step = functools.partial(step, read=read, erase=erase, precision=precision)
  states, o = tile_scan(step, params, carry, xs, marks, plan, keep)
  return o[..., :value_dim], tuple(s[..., :value_dim] for s in states)


def _keep(xs, *, precision):
  """The inverse of a tile; in twice bfloat16, side by side, where that serves.

  Side by side, because HBM pads the last axis to 128 anyway.
  """
  _, k, _, eta, log_alpha = (x.astype(jnp.float32) for x in xs)
  inverse = chunked.system_inverse(k, eta, log_alpha, precision)
  if precision == 'float32':
    return inverse
  high = leading_half(inverse)
  parts = jnp.concatenate([high, inverse - high], axis=-1)
  return parts.astype(jnp.bfloat16)


def _step(params, carry, xs, marks, inverse, *, read, erase, precision):
  """A tile: carry is the state alone."""
  del params, marks
  if not erase:
    inverse = None
  elif precision == 'bf16':
    parts = inverse.astype(jnp.float32)
    size = parts.shape[-2]
    inverse = parts[..., :size] + parts[..., size:]
  (state,) = carry
  q, k, u, eta, log_alpha = (x.astype(jnp.float32) for x in xs)
  o, state, _ = chunked.chunk_step(
      state, q, k, u, eta, log_alpha, read=read, erase=erase,
      precision=precision, inverse=inverse,
  )
  assert o is not None  # There are queries.
  return (state,), o.astype(xs[2].dtype)


def _segment_step(params, carry, xs, marks, kept, *, read, erase, precision):
  """A tile with segments: params is the state that they start from, if any."""
  del kept
  o, states = segments.segment_step(
      (carry[0], carry[-1]), params[0] if params else None,
      *(x.astype(jnp.float32) for x in xs), where=marks, read=read,
      erase=erase, precision=precision,
  )
  return states[: len(carry)], o.astype(xs[2].dtype)
