"""A self-modifying layer as a TPU kernel: its step in a `tile_scan`."""

import jax
from jax.sharding import PartitionSpec

from hope_jax.kernels.dgd.layer import Layer
from hope_jax.kernels.dgd.tpu import planning
from hope_jax.kernels.dgd.tpu.tile_scan import Step, over_devices, tile_scan
from hope_jax.types import PyTree


def _sizes(layer: Layer) -> planning.Sizes:
  """What a kernel holds of a row and head."""
  return planning.Sizes(
      tile=layer.tile,
      # Streams and outputs, and four products with the wide state: of the
      # frozen copy with keys and values, of the state with keys, and writes.
      vectors=(layer.key_dim,) * 4 + (layer.state_dim,) * 4,
      matrices=layer.matrices,
      interpret=layer.interpret,
  )


def obstacle(layer: Layer) -> str | None:
  """Why no kernel can run this, in one line; None: one can."""
  return planning.obstacle(
      layer.key_dim, layer.key_dim, layer.tile, layer.dtype, layer.interpret
  ) or planning.too_large(_sizes(layer))


def scan(
    step: Step,
    params: PyTree,
    carry: PyTree,
    xs: PyTree,
    marks: PyTree,
    *,
    layer: Layer,
    partition: PartitionSpec | None,
) -> tuple[PyTree, PyTree]:
  """`implementations.RunScan`, in one kernel."""

  def run(params, carry, xs, marks):
    batch, length, heads, _ = jax.tree.leaves(xs)[0].shape
    plan = planning.plan(
        _sizes(layer), batch=batch, length=length, heads=heads
    )
    return tile_scan(step, params, carry, xs, marks, plan)

  return over_devices(run, partition)(params, carry, xs, marks)
