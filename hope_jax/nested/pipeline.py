"""A self-modifying layer over a sequence whose shards lie on several devices.

What such a layer does with the state that it is handed is not linear in it:
keys, rates and targets are read from the memories, so that a shard must wait
for the state that the shard ahead of it leaves. (Where they are given, none
waits: `kernels.dgd.handover`.) To keep the devices busy the batch is cut into M
micro-batches that follow one another down the line. At tick t shard s works on
micro-batch t - s, and hands its state on:

    tick        0   1   2   3   4   5
    shard 0    m0  m1  m2  m3
    shard 1        m0  m1  m2  m3
    shard 2            m0  m1  m2  m3

S shards take M + S - 1 ticks instead of M, so (S - 1) / (M + S - 1) of the time
is idle. A message is one micro-batch's state.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.types import PyTree


def pipeline(
    run: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    states: PyTree,
    xs: PyTree,
    *,
    axis_name: Any,
) -> tuple[PyTree, PyTree]:
  """Reads micro-batches of a sequence that a `shard_map` splits over devices.

  Exact, and differentiable as it stands: the gradient goes up the line again.

  Args:
    run: (state, shard of a micro-batch) -> (state after it, outputs).
    states: before the first shard, leaves [M, ...]; the same on all devices.
    xs: this device's shard of each micro-batch, leaves [M, ...].
    axis_name: mesh axis over which the sequence lies, in order.

  Returns:
    The states after the last shard, leaves [M, ...], on all devices; outputs of
    this shard, leaves [M, ...].
  """
  shards = jax.lax.axis_size(axis_name)
  index = jax.lax.axis_index(axis_name)
  count = len(jax.tree.leaves(xs)[0])
  onward = [(i, i + 1) for i in range(shards - 1)]

  def tick(handed, t):
    """carry: the state that the shard ahead left at the tick before."""
    # Before its first micro-batch and after its last a shard has nothing to
    # do; what it does then is never looked at.
    m = jnp.clip(t - index, 0, count - 1)
    pick = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, m, keepdims=False)
    state = jax.tree.map(
        lambda own, other: jnp.where(index == 0, pick(own), other),
        states,
        handed,
    )
    state, outputs = run(state, jax.tree.map(pick, xs))
    handed = jax.tree.map(
        lambda leaf: jax.lax.ppermute(leaf, axis_name, onward), state
    )
    return handed, (state, outputs)

  first = jax.tree.map(lambda leaf: leaf[0], states)
  _, (left, outputs) = jax.lax.scan(
      tick, first, jnp.arange(count + shards - 1)
  )
  mine = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, count)
  last = jax.tree.map(
      lambda leaf: jax.lax.all_gather(mine(leaf), axis_name)[-1], left
  )
  return last, jax.tree.map(mine, outputs)
