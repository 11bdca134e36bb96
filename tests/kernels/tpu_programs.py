"""Compiles the kernels with the TPU compiler, in a process without a TPU.

Run by test_tpu_compile.py: libtpu wants its environment set before it loads,
and the other tests need not load it at all. Prints one JSON line a program.
"""

import functools
import json
import math
import re
import sys
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.kernels.dgd.api import dgd_recurrence
from hope_jax.models.factory import language_model
from hope_jax.sharding import unbox
from hope_jax.train.losses import make_loss_fn
from hope_jax.train.state import TrainState
from hope_jax.train.step import make_train_step

TOPOLOGIES = {
    'v4': 'v4:2x2x1', 'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2',
    'TPU7x': 'tpu7x:2x2x1',
}
COLLECTIVES = (
    'all-reduce', 'all-gather', 'all-to-all', 'collective-permute',
    'reduce-scatter',
)


def mesh_of(chip, shape=(1,), names=('data',)):
  """A mesh over devices that only the compiler knows."""
  topology = topologies.get_topology_desc(TOPOLOGIES[chip], platform='tpu')
  devices = topology.devices[: math.prod(shape)]
  kind = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.sharding.Mesh(
      np.array(devices).reshape(shape), names, axis_types=kind
  )


def compiled(f, mesh, arguments):
  """`f` compiled for a mesh; arguments are (shape, dtype, PartitionSpec)."""
  args = [
      jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, p))
      for s, d, p in arguments
  ]
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = jax.jit(f).trace(*args).lower(lowering_platforms=('tpu',))
  return lowered.compile()


def recurrence(
    chip, key_dim, value_dim, *, dtype='bfloat16', mesh_shape=(1,), **options
):
  """Forward and backward of the recurrence, 4 heads, 256 tokens."""
  names = ('data', 'tensor', 'sequence')[: len(mesh_shape)]
  mesh = mesh_of(chip, mesh_shape, names)
  partition = P(*names) if len(names) > 1 else None
  split = (*(partition or ()), None, None, None)[:3]
  spec = P(*split[:2])
  packed = options.pop('packed', False)
  b, t, h = 2, 256, 4
  dtype = jnp.dtype(dtype)
  options['precision'] = 'bf16' if dtype == jnp.bfloat16 else 'float32'
  if partition is not None:
    options['partition'] = partition

  def run(q, k, u, eta, log_alpha, state, ids, do, ds):
    f = functools.partial(
        dgd_recurrence, implementation='pallas_tpu',
        segment_ids=ids if packed else None, **options,
    )
    out, pull = jax.vjp(f, q, k, u, eta, log_alpha, state)
    return out, pull((do, ds))

  tokens = P(split[0], split[2], split[1])
  keys = ((b, t, h, key_dim), dtype, tokens)
  values = ((b, t, h, value_dim), dtype, tokens)
  gates = ((b, t, h), jnp.float32, tokens)
  state = ((b, h, key_dim, value_dim), jnp.float32, spec)
  ids = ((b, t), jnp.int32, P(split[0], split[2]))
  return compiled(
      run, mesh, (keys, keys, values, gates, gates, state, ids, values, state)
  )


def train_step(
    chip, *, mesh_shape=(1,), architecture='hope', memory='matrix', **changes
):
  """The train step of a small Hope, or another: one layer, 2 heads of 64."""
  config = ModelConfig(
      architecture=architecture, vocab_size=64, dim=128, layers=1, heads=2,
      titans=TitansConfig(memory=memory, expansion=2, **changes),
  )
  mesh = mesh_of(chip, mesh_shape, ('data', 'tensor')[: len(mesh_shape)])
  model = language_model(config)
  optimizer = optax.adam(1e-3)
  step = make_train_step(make_loss_fn(model), optimizer)
  shape = (2, 64)
  batch = dict(
      tokens=((shape), jnp.int32), targets=((shape), jnp.int32),
      segment_ids=((shape), jnp.int32), mask=((shape), jnp.float32),
      target_bytes=((shape), jnp.float32),
  )
  replicated = NamedSharding(mesh, P())
  put = lambda s, d: jax.ShapeDtypeStruct(s, d, sharding=replicated)
  batch = {n: put(*x) for n, x in batch.items()}

  def init(rng):
    params = model.init(rng, jnp.zeros(shape, jnp.int32))['params']
    params = unbox(params)
    return TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(params), rng
    )

  state = jax.tree.map(
      lambda x: put(x.shape, x.dtype),
      jax.eval_shape(init, jax.random.PRNGKey(0)),
  )
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = jax.jit(step).trace(state, batch).lower(
        lowering_platforms=('tpu',)
    )
  return lowered.compile()


PROGRAMS = {'recurrence': recurrence, 'train_step': train_step}


def main():
  for line in sys.stdin:
    program, arguments, options = json.loads(line)
    start, error, kernels, collectives = time.time(), None, 0, []
    try:
      text = PROGRAMS[program](*arguments, **options).as_text()
      kernels = len(re.findall(r'custom_call_target="tpu_custom_call"', text))
      collectives = [name for name in COLLECTIVES if name in text]
    except Exception as e:  # what the compiler says is what the test shows
      error = str(e)[:1000]
    result = dict(
        error=error, kernels=kernels, collectives=collectives,
        seconds=round(time.time() - start, 1),
    )
    print(json.dumps(result), flush=True)


if __name__ == '__main__':
  main()
