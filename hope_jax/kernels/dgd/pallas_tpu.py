"""The DGD recurrence as a TPU kernel: `chunked.chunk_step` in a `tile_scan`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd import block_sizes, chunked, segments
from hope_jax.kernels.dgd.layouts import Plan
from hope_jax.kernels.dgd.products import leading_half
from hope_jax.kernels.dgd.tile_scan import tile_scan
from hope_jax.types import Array

WIDTHS = (64, 128, 256)
TILES = range(16, 129, 16)


def device() -> tuple[str, str]:
  """Platform and device kind that the code being traced will run on.

  The devices of the mesh that is set, or else the default backend. Setting the
  mesh of a TPU topology is how one compiles for it without having one.
  """
  of_mesh = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  if of_mesh is not None:
    return of_mesh.platform, of_mesh.device_kind
  first = jax.devices()[0]
  return first.platform, first.device_kind


def obstacle(
    key_dim: int, value_dim: int, tile: int, dtype: Any, interpret: Any
) -> str | None:
  """Why the kernel cannot run this, in one line; None: it can."""
  platform, kind = device()
  if platform != 'tpu' and not interpret:
    return (
        f'needs a TPU and this is {kind!r} ({platform}); interpret=True'
        ' emulates one'
    )
  if key_dim not in WIDTHS or value_dim not in WIDTHS:
    return f'K and V must be in {WIDTHS}; got K={key_dim}, V={value_dim}'
  if tile not in TILES:
    return f'tile must be a multiple of 16, at most 128; got tile={tile}'
  if jnp.dtype(dtype).itemsize > 4:
    return f'the state must be float32; got {jnp.dtype(dtype).name}'
  return None


def plan(
    *, batch, length, heads, tile, vectors, matrices, itemsize, save_states,
    interpret,
) -> Plan:
  """The layout of a scan on the device at hand; see `block_sizes.choose`."""
  blocks = block_sizes.choose(
      block_sizes.chip(device()[1]), batch=batch, length=length, heads=heads,
      tile=tile, vectors=vectors, matrices=matrices, itemsize=itemsize,
      save_states=save_states,
  )
  return Plan(tile=tile, **blocks._asdict(), interpret=interpret)


def recurrence(
    q: Array,
    k: Array,
    u: Array,
    eta: Array,
    log_alpha: Array,
    state: Array,
    segment_ids: Array | None,
    ahead: Array | None = None,
    *,
    read: chunked.Read,
    tile: int,
    precision: str,
    save_states: str,
    interpret: Any,
) -> tuple[Array, tuple[Array, ...]]:
  """`api.dgd_recurrence` by the kernel; q, k and u in the dtype they come in.

  `ahead` [B]: tokens of the first segment that came before.

  Returns:
    Outputs [B, T, H, V] in u's dtype; the final state float32 and, if read is
    'chunk' and rows are packed, the state at the last chunk start.
  """
  batch, length, heads, key_dim = k.shape
  lanes = block_sizes.lanes(u.shape[-1])
  states = 1 if segment_ids is None else 2 if read != 'chunk' else 3
  scan_plan = plan(
      batch=batch, length=length, heads=heads, tile=tile,
      vectors=2 * block_sizes.lanes(key_dim) + 2 * lanes,
      matrices=states * key_dim * lanes,
      itemsize=jnp.dtype(u.dtype).itemsize, save_states=save_states,
      interpret=interpret,
  )
  xs = q, k, u, eta, log_alpha
  if segment_ids is None:
    step = functools.partial(_step, read=read, precision=precision)
    keep = functools.partial(_keep, precision=precision)
    (state,), o = tile_scan(step, (), (state,), xs, (), scan_plan, keep)
    return o, (state,)
  step = functools.partial(_segment_step, read=read, precision=precision)
  where = segments.tile_positions(segment_ids, tile, ahead)
  marks = segments.Segments(*(
      jnp.broadcast_to(x[..., None], (*x.shape, heads)) for x in where
  ))
  # Only a 'chunk' read looks back to a chunk's start.
  carry = (state, state) if read == 'chunk' else (state,)
  states, o = tile_scan(step, (state,), carry, xs, marks, scan_plan)
  return o, states


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


def _step(params, carry, xs, marks, inverse, *, read, precision):
  """A tile: carry is the state alone."""
  del params, marks
  if precision == 'bf16':
    parts = inverse.astype(jnp.float32)
    size = parts.shape[-2]
    inverse = parts[..., :size] + parts[..., size:]
  o, state, _ = chunked.chunk_step(
      *carry, *(x.astype(jnp.float32) for x in xs), read=read,
      precision=precision, inverse=inverse,
  )
  return (state,), o.astype(xs[2].dtype)


def _segment_step(params, carry, xs, marks, kept, *, read, precision):
  """A tile with segments: params is the state that they start from."""
  del kept
  o, states = segments.segment_step(
      (carry[0], carry[-1]), *params, *(x.astype(jnp.float32) for x in xs),
      marks, read=read, precision=precision,
  )
  return states[: len(carry)], o.astype(xs[2].dtype)
