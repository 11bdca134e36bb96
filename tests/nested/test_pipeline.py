"""Self-modifying Titans over a sequence on several devices, in a pipeline."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from hope_jax.nested import titans
from hope_jax.nested.memory import Matrix
from hope_jax.nested.pipeline import pipeline
from tests import eight_devices
from tests.nested.test_titans_kernel import DEFAULT

MICRO, B, T, H, K = 3, 2, 32, 2, 8
STARTS = np.zeros((MICRO, B, T), bool)
STARTS[0, 0, [0, 5, 16]] = STARTS[1, 1, 23] = STARTS[2, 0, 8] = True


@pytest.mark.slow  # More than a minute, and no run of a model calls it yet.
def test_on_eight_devices():
  """Runs the test below in a process that has them."""
  eight_devices.run(__file__, 'in_line')


def _arguments():
  rng = np.random.default_rng(0)
  make = lambda *s: jnp.asarray(rng.normal(size=s))
  widths = dict(memory=K, k=K, v=K, eta=1, alpha=1)
  params = {
      'memories': {n: Matrix(0.1 * make(H, K, w)) for n, w in widths.items()},
      'w_q': make(H, K, K) / K**0.5,
      'bias_eta': make(H),
      'bias_alpha': make(H) + 2,
      'w_mu': make(H, K),
      'bias_mu': make(H),
  }
  x = titans.Streams(*(make(MICRO, B, T, H, K) for _ in range(3)))
  return params, x


@pytest.mark.parametrize('shards', [2, 8])
@pytest.mark.parametrize('chunk', [4, 8])
def test_shards_in_line_are_one_layer(shards, chunk, x64):
  """A failure means that a shard reads with another shard's memory.

  With chunks of 8 on eight shards of 4 tokens, chunks lie across borders.
  Outputs, final state, and the gradients of everything, against one device.
  """
  if jax.device_count() < 8:
    pytest.skip(eight_devices.MISSING)
  options = titans.Options(
      **DEFAULT | {'chunk': chunk, 'projection_chunk': 4}
  )
  params, x = _arguments()
  layer = functools.partial(titans.layer, options=options)

  def whole(params, x):
    run = lambda x, starts: layer(params, x, starts=starts)[:2]
    return jax.vmap(run)(x, jnp.asarray(STARTS))

  def in_shards(params, x):
    def body(params, x, starts):
      state = titans.initial_state(params, B, options)
      states = jax.tree.map(
          lambda w: jnp.broadcast_to(w, (MICRO, *w.shape)), state
      )

      def run(state, xs):
        o, state, _ = layer(params, xs[0], state, starts=xs[1])
        return state, o

      states, o = pipeline(run, states, (x, starts), axis_name='sequence')
      return o, states

    tokens = P(None, None, 'sequence')
    return jax.shard_map(
        body, in_specs=(P(), tokens, tokens), out_specs=(tokens, P()),
        check_vma=False,
    )(params, x, jnp.asarray(STARTS))

  def loss(f, params, x):
    o, states = f(params, x)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=o.shape))
    return jnp.sum(o * weights) + sum(
        jnp.sum(jnp.sin(w)) for w in jax.tree.leaves(states.memories)
    )

  def everything(f):
    run = jax.jit(lambda p, x: (f(p, x), jax.grad(
        functools.partial(loss, f), argnums=(0, 1))(p, x)))
    return run(params, x)

  expected = everything(whole)
  mesh = jax.make_mesh(
      (shards,), ('sequence',), axis_types=(AxisType.Auto,),
      devices=jax.devices()[:shards],
  )
  with jax.set_mesh(mesh):
    actual = everything(in_shards)
  for a, e in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-10)
