"""Compiles attention with the TPU compiler; run by test_attention_tpu.py.

In a process of its own: libtpu wants its environment set before it loads.
Prints the number of kernels of each program.
"""

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from hope_jax.models.attention_kernels import attend


def kernels(topology, shape, width, dtype):
  """Forward and backward of two packed rows of 512 tokens, four heads."""
  devices = topologies.get_topology_desc(topology, platform='tpu').devices
  mesh = jax.sharding.Mesh(
      np.array(devices[: shape[0] * shape[1]]).reshape(*shape, 1),
      ('data', 'tensor', 'fsdp'),
      axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )

  def run(q, k, v, ids, d):
    attention = lambda q, k, v: attend(q, k, v, ids, ids, 300)
    o, pull = jax.vjp(attention, q, k, v)
    return o, pull(d)

  def array(shape, dtype, *spec):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  x = array((2, 512, 4, width), dtype, 'data', None, 'tensor')
  ids = array((2, 512), jnp.int32, 'data')
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = jax.jit(run).trace(x, x, x, ids, x).lower(
        lowering_platforms=('tpu',)
    )
  return lowered.compile().as_text().count('"tpu_custom_call"')


if __name__ == '__main__':
  for case in (
      ('v5e:2x2', (1, 1), 64, jnp.bfloat16),
      ('v5e:2x2', (2, 2), 128, jnp.bfloat16),
      ('v5p:2x2x1', (1, 1), 128, jnp.float32),
  ):
    print(kernels(*case), flush=True)
