"""Logical axes -> mesh axes, on one device and on eight.

Eight CPU devices need a flag before JAX starts, so what needs them runs in one
subprocess (`eight_devices` below); the tests look at what it printed.
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from hope_jax import sharding
from hope_jax.config import ConfigError, MeshConfig

ROOT = pathlib.Path(__file__).parents[1]

SCRIPT = '''
import json
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import sharding
from hope_jax.config import MeshConfig
from hope_jax.evals import text
from hope_jax.train import checkpoint, loop
from tests import standin

out = {}
axes = lambda a: [a] if isinstance(a, str) else a and list(a)
spec = lambda x: [axes(a) for a in x.sharding.spec]


def train(**mesh):
  config = standin.make_config(mesh=mesh, optimizer={'accumulate': 2})
  return loop.train(
      standin.Standin(), standin.Batches(), config, progress=False,
      evaluate=lambda params: text.evaluate(
          standin.Standin(), params, [next(standin.Batches(seed=1))]),
  )


runs = {
    'one': train(data=1),
    'eight': train(data=2, fsdp=2, tensor=2),
}
for name, result in runs.items():
  out[name] = [[r['loss'], r['bits_per_byte']] for r in result.history]
params = runs['eight'].state.params
level = runs['eight'].state.opt_state[1].inner_states['level_1'].inner_state
out['params'] = {
    'embedding': spec(params['embedding']),
    'scale': spec(params['layers']['scale']),
    'level': spec(params['layers']['continuum']['level_1']),
}
place = lambda t: t['layers']['continuum']['level_1']
out['optimizer'] = {
    'mu': spec(place(level.inner[0].mu)),
    'accumulator': spec(place(level.accumulator)),
    'updates': spec(level.updates),
}
leaf = place(params)
out['shard'] = [list(leaf.shape), list(leaf.addressable_shards[0].data.shape)]

# A run goes on with other devices: written from one, read by eight.
with tempfile.TemporaryDirectory() as workdir:
  checkpoints = checkpoint.Checkpoints(standin.make_config(workdir=workdir))
  checkpoints.save(runs['one'].state, {})
  moved, _ = checkpoints.restore(runs['eight'].state)
  checkpoints.close()
out['moved'] = spec(place(moved.params))
out['same'] = all(
    bool((np.asarray(a) == np.asarray(b)).all())
    for a, b in zip(jax.tree.leaves(moved[:3]),
                    jax.tree.leaves(runs['one'].state[:3])))

mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
with jax.set_mesh(mesh):
  batch = sharding.put_batch(next(standin.Batches()))
  out['batch'] = spec(batch['tokens'])
  out['constrained'] = spec(jax.jit(
      lambda x: sharding.constrain(x * 2, 'layers', 'batch', 'heads', None)
  )(jnp.ones((3, 8, 2, 5))))
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    odd = jax.jit(lambda x: sharding.constrain(x * 2, 'batch', 'mlp'))(
        jnp.ones((6, 4)))
  out['odd'] = spec(odd)
  out['warning'] = [str(w.message) for w in caught]


# What initialisation is compiled to, seen over the shoulder of jax.jit.
compiled = []
jit = jax.jit


def watched(fun, **kwargs):
  jitted = jit(fun, **kwargs)
  compiled.append(jitted.lower().compile())
  return jitted


jax.jit = watched
sharding.initialise(
    mesh,
    lambda: standin.Standin(standin.make_config().model).init(
        jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params'],
)
out['init_bytes'] = compiled[0].memory_analysis().output_size_in_bytes
print(json.dumps(out))
'''


@pytest.fixture(scope='module')
def eight_devices():
  env = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  env['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
  done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(SCRIPT)],
      capture_output=True, text=True, env=env, check=False, cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_same_losses_on_eight_devices(eight_devices):
  """If it fails, the devices compute something else than one of them would.

  Along all three axes of the mesh, with two micro-batches a step, six steps
  and two evaluations. Only the order of sums may differ, hence 1e-5.
  """
  one, eight = eight_devices['one'], eight_devices['eight']
  assert len(one) == 8
  np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_parameters_are_split(eight_devices):
  """If it fails, every device holds the whole of a large model."""
  assert eight_devices['params'] == {
      'embedding': [['tensor'], ['fsdp']],
      'scale': [None, ['fsdp']],
      'level': [None, ['fsdp'], ['tensor']],
  }
  assert eight_devices['shard'] == [[2, 8, 8], [2, 4, 4]]


def test_optimizer_state_is_split_like_its_parameter(eight_devices):
  """If it fails, moments and accumulators take the memory that fsdp saved."""
  assert eight_devices['optimizer'] == {
      'mu': [None, ['fsdp'], ['tensor']],
      'accumulator': [None, ['fsdp'], ['tensor']],
      'updates': [],
  }


def test_batches_and_states_are_split(eight_devices):
  """If it fails, devices repeat each other's rows, or hold all states."""
  assert eight_devices['batch'] == [['data', 'fsdp'], None]
  # XLA drops the trailing axes that are whole.
  assert eight_devices['constrained'][:3] == [
      None, ['data', 'fsdp'], ['tensor']
  ]


def test_checkpoint_of_other_devices(eight_devices):
  """If it fails, a run cannot move to a machine with more or fewer devices."""
  assert eight_devices['moved'] == [None, ['fsdp'], ['tensor']]
  assert eight_devices['same']


def test_axis_that_does_not_divide_stays_whole(eight_devices):
  """If it fails, an odd batch is an error, or is spread without a word."""
  assert eight_devices['odd'] == [None, ['tensor']]
  assert any(
      "'batch' of length 6 is not divisible by the 4 devices" in message
      for message in eight_devices['warning']
  )


def test_initialisation_is_born_split(eight_devices):
  """If it fails, a model that fits only in pieces cannot be initialised.

  The compiled initialisation returns, for each device, a quarter of the two
  large arrays and half of the small one, in bytes.
  """
  large = (16 * 8 + 2 * (2 * 8 * 8)) // 4
  small = (2 * 8) // 2
  assert eight_devices['init_bytes'] <= 4 * (large + small) + 64


def test_constrain_without_a_mesh_is_nothing():
  """If it fails, a model cannot be called outside a training run."""
  x = jnp.ones((2, 3))
  assert sharding.constrain(x, 'batch', None) is x


def test_unknown_name():
  """If it fails, a misspelt axis silently means 'not split'."""
  with pytest.raises(ValueError, match="'embd'.*known: batch, embed"):
    sharding.constrain(jnp.ones((2, 3)), 'batch', 'embd')


def test_collision():
  """If it fails, JAX answers with an error that names no logical axis."""
  with pytest.raises(ValueError, match="'batch' and 'embed'.*'fsdp'"):
    sharding.constrain(jnp.ones((2, 3, 4)), 'batch', 'time', 'embed')


def test_too_few_names():
  """If it fails, names slide to the wrong axes."""
  mesh = sharding.make_mesh(MeshConfig(data=1))
  with pytest.raises(ValueError, match='needs 2 axis names'):
    sharding.partition_spec(mesh, (2, 3), ('batch',))


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ({'data': 3}, 'needs 3 devices; found 1'),
        ({'data': -1, 'fsdp': 2}, 'does not divide 1 devices'),
    ],
)
def test_mesh_that_cannot_be(sizes, message):
  """If it fails, a mesh too large for the machine is an error of JAX's."""
  with pytest.raises(ConfigError, match=message):
    sharding.make_mesh(MeshConfig(**sizes))


def test_optimizer_state_with_more_or_fewer_axes():
  """If it fails, an optimizer with stacked or factored moments cannot run.

  Stacked: axes in front are whole. Factored: copied, as no axis is certain.
  """
  mesh = sharding.make_mesh(MeshConfig(data=1))
  placed = jax.sharding.NamedSharding(mesh, P('fsdp', 'tensor'))
  params = {
      'a': {'w': jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=placed)}
  }
  state = {
      'stacked': {'a': {'w': jnp.ones((3, 4, 6))}},
      'rows': {'a': {'w': jnp.ones((4,))}},
  }
  found = sharding.optimizer_shardings(mesh, state, params)
  assert found['stacked']['a']['w'].spec == P(None, 'fsdp', 'tensor')
  assert found['rows']['a']['w'].spec == P()


def test_shapes_without_boxes():
  """If it fails, a module that names no axes cannot be trained."""
  mesh = sharding.make_mesh(MeshConfig(data=1))
  found = sharding.param_shardings(mesh, {'w': jnp.ones((2, 3))})
  assert found['w'].spec == P(None, None)
