"""A scan over tiles of tokens as one TPU kernel, forward and backward.

    carry_n, ys_n = step(params, carry_{n-1}, xs_n, marks_n, keep(xs_n))

`step` is a pure function on the rows (batch and head) of one block. The forward
kernel is its body; the backward kernel is `jax.vjp` of it, tile by tile in
reverse. So one function defines a recurrence for XLA, for both kernels and for
their tests, and nothing is derived by hand twice. The kernels themselves are in
`tile_kernels.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hope_jax.kernels.dgd.tpu import tile_kernels
from hope_jax.kernels.dgd.tpu.layouts import Plan
from hope_jax.types import PyTree

# (params, carry, xs, marks, kept) -> (carry, ys); leaves lead with R rows.
Step = Callable[..., tuple[PyTree, PyTree]]
Keep = Callable[[PyTree], PyTree]


def tile_scan(
    step: Step,
    params: PyTree,
    carry: PyTree,
    xs: PyTree,
    marks: PyTree,
    plan: Plan,
    keep: Keep | None = None,
) -> tuple[PyTree, PyTree]:
  """Scans `step` over tiles of tokens; differentiable in params, carry and xs.

  Args:
    step: pure, and made of what Mosaic lowers: on blocks of R = rows * heads
      rows it gets params and carry [R, ., .], xs and marks [R, C, K] or [R, C].
    params: the same for all tiles, leaves [B or 1, H, ., .].
    carry: leaves [B, H, ., .] float32.
    xs: leaves [B, T, H, K] or [B, T, H]; where T is not a multiple of the tile,
      zeros follow: `step` must let them change nothing.
    marks: like xs, but not differentiated (integers, flags); they may be
      given to the end of the last tile.
    plan: layout; B and H must be multiples of plan.rows and plan.heads.
    keep: of a tile of xs, matrices [R, ., .] that `step` then gets as its last
      argument; the backward pass reads those of the forward pass instead of
      computing them again. They are not differentiated.

  Returns:
    The last carry, and the outputs [B, T, H, V] or [B, T, H].
  """
  length = jax.tree.leaves(xs)[0].shape[1]
  padded = -(-length // plan.tile) * plan.tile

  def pad(x):
    missing = padded - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))

  xs, marks = jax.tree.map(pad, (xs, marks))
  tiles = padded // plan.tile
  if plan.tiles_per_call >= tiles:
    carry, ys = _scan(step, keep, plan, params, carry, xs, marks)
    return carry, jax.tree.map(lambda y: y[:, :length], ys)

  def cut(x):  # [B, T, ...] -> [calls, B, T of a call, ...]
    x = x.reshape(x.shape[0], tiles // plan.tiles_per_call, -1, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  # carry: of `step`; xs: the tiles of one kernel call.
  carry, ys = jax.lax.scan(
      lambda carry, x: _scan(step, keep, plan, params, carry, *x),
      carry, jax.tree.map(cut, (xs, marks)),
  )

  def join(y):
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]

  return carry, jax.tree.map(join, ys)


def over_devices(f: Callable, partition: PartitionSpec | None) -> Callable:
  """f(params, carry, xs, marks), a scan, on each device's rows and heads.

  Args:
    f: as `tile_scan` without step and plan.
    partition: how the mesh that is set splits (batch, heads); None: not.

  Returns:
    A function of whole arrays. There is no communication, except that the
    gradients of params that rows share are summed over the devices.
  """
  if partition is None:
    return f
  batch, heads = partition
  tokens, matrices = PartitionSpec(batch, None, heads), partition

  def run(params, carry, xs, marks):
    of_params = jax.tree.map(
        lambda x: matrices if x.shape[0] > 1 else PartitionSpec(None, heads),
        params,
    )
    return jax.shard_map(
        f,
        in_specs=(of_params, matrices, tokens, tokens),
        out_specs=(matrices, tokens),
        # What a kernel returns does not say over which axes it varies.
        check_vma=False,
    )(params, carry, xs, marks)

  return run


def _scan_primal(
    step, keep, plan, params, carry, xs, marks
) -> tuple[PyTree, PyTree]:
  carry, ys, *_ = tile_kernels.forward(
      step, keep, plan, params, carry, xs, marks, save=False,
      differentiated=False,
  )
  return carry, ys


def _scan_fwd(step, keep, plan, params, carry, xs, marks):
  save = plan.save_states == 'hbm'
  last, ys, saved, kept = tile_kernels.forward(
      step, keep, plan, params, carry, xs, marks, save=save,
      differentiated=True,
  )
  return (last, ys), (params, saved if save else carry, xs, marks, kept)


def _scan_bwd(step, keep, plan, residuals, cotangents):
  params, states, xs, marks, kept = residuals
  dparams, dcarry, dxs = tile_kernels.backward(
      step, plan, params, states, xs, marks, kept, *cotangents
  )
  return dparams, dcarry, dxs, None


_scan = jax.custom_vjp(_scan_primal, nondiff_argnums=(0, 1, 2))
_scan.defvjp(_scan_fwd, _scan_bwd)
