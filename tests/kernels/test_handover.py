"""The recurrence over a sequence on eight devices, against the oracle."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from hope_jax.kernels.dgd.api import dgd_recurrence
from tests import eight_devices
from tests.kernels import cases
from tests.oracles import recurrence as oracle

SHAPE = (2, 64, 2, 8, 5)  # B, T, H, K, V
WHERE = P('data', 'tensor', 'sequence')


@pytest.mark.slow  # More than a minute, and no run of a model calls it yet.
def test_on_eight_devices():
  """Runs the tests below in a process that has them."""
  eight_devices.run(__file__, 'sharded')


@pytest.fixture
def mesh(request):
  if jax.device_count() < 8:
    pytest.skip(eight_devices.MISSING)
  return jax.make_mesh(
      request.param, ('data', 'tensor', 'sequence'),
      axis_types=(AxisType.Auto,) * 3,
  )


def _check(
    mesh, regimes, *, packed, bounds, dtype, shape=SHAPE, reset=False,
    where=WHERE, **options,
):
  """Outputs, final state and all gradients of every regime."""
  ids = cases.segments(shape[1]) if packed else None
  with jax.set_mesh(mesh):
    def f(q, k, u, eta, log_alpha, state, *reset):
      return dgd_recurrence(
          q, k, u, eta, log_alpha, state, partition=where,
          segment_ids=None if ids is None else jnp.asarray(ids),
          reset=reset[0] if reset else None, **options,
      )

    @jax.jit
    def run(args, cotangents):
      out, pull = jax.vjp(f, *args)
      return *out, *pull(cotangents)

    for regime in regimes:
      args = cases.inputs(regime, shape)
      cotangents = cases.cotangents(shape)
      cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
      how = dict(
          read=options['read'], tile=options['tile'], segment_ids=ids,
          erase=options.get('erase', True),
      )
      more = ()
      if reset:
        how['reset'] = cases.reset(shape)
        more = (how['reset'],)
      actual = run(cast((*args, *more)), cast(cotangents))
      expected = (
          *oracle.recurrence(*args, **how),
          *oracle.recurrence_gradient(*args, *cotangents, **how),
      )
      cases.check(actual, expected, bounds, f'{regime} {options}')


@pytest.mark.parametrize('mesh', [(1, 1, 8), (2, 2, 2)], indirect=True)
@pytest.mark.parametrize('read', cases.READS)
@pytest.mark.parametrize('packed', [False, True])
def test_sharded_sequence(mesh, read, packed, x64):
  """A failure means that a shard is handed another state than it should be.

  Segments start inside shards, at their edges, and not for several shards.
  """
  _check(
      mesh, ('plain', 'mixed', 'same_keys', 'forget'), packed=packed,
      bounds=cases.BOUNDS['float64'], dtype=np.float64, read=read, tile=4,
  )


@pytest.mark.parametrize('mesh', [(1, 2, 4)], indirect=True)
@pytest.mark.parametrize('read', cases.READS)
def test_sharded_sequence_of_linear_memories(mesh, read, x64):
  """A failure means that shards restart from, or add up to, another state."""
  _check(
      mesh, ('plain', 'mixed'), packed=True, reset=True, erase=False,
      bounds=cases.BOUNDS['float64'], dtype=np.float64, read=read, tile=4,
  )
  _check(
      mesh, ('mixed',), packed=True, reset=True,
      bounds=cases.BOUNDS['float64'], dtype=np.float64, read=read, tile=4,
  )


@pytest.mark.parametrize('mesh', [(2, 2, 2)], indirect=True)
@pytest.mark.parametrize('reset', [False, True])
def test_sharded_rows_and_heads(mesh, reset, x64):
  """A failure means that a device runs another's rows or heads.

  As the linear memories ask for it; a third axis of the mesh is left alone.
  """
  _check(
      mesh, ('mixed',), packed=True, reset=reset, where=P('data', 'tensor'),
      bounds=cases.BOUNDS['float64'], dtype=np.float64, read='post', tile=4,
  )


@pytest.mark.parametrize('mesh', [(1, 1, 8)], indirect=True)
@pytest.mark.parametrize('implementation', ['reference', 'pallas_tpu'])
def test_sharded_sequence_by_others(mesh, implementation):
  """A failure means that only the XLA form can be handed a state."""
  kernel = implementation == 'pallas_tpu'
  _check(
      mesh, ('plain', 'mixed'), packed=True, bounds=cases.BOUNDS['float32'],
      dtype=np.float32, shape=(2, 128, 1, 64, 64) if kernel else SHAPE,
      read='pre', tile=16, implementation=implementation, interpret=kernel,
  )


@pytest.mark.parametrize('mesh', [(1, 1, 8)], indirect=True)
@pytest.mark.parametrize(
    ('length', 'read', 'tile', 'complaint'),
    [
        (60, 'pre', 4, 'T must be a multiple of the 8 devices'),
        (48, 'chunk', 4, 'tile must divide the 6 tokens'),
    ],
)
def test_sharded_sequence_that_does_not_fit(
    mesh, length, read, tile, complaint
):
  """A failure means that a bad length ends in a message from shard_map."""
  args = [jnp.asarray(x) for x in cases.inputs('plain', (2, length, 2, 8, 5))]
  with jax.set_mesh(mesh), pytest.raises(ValueError, match=complaint):
    dgd_recurrence(*args, read=read, tile=tile, partition=WHERE)
