"""Associative memories: how they read, and their closed-form gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import dgd
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.memory import Matrix, Mlp
from tests.oracles import titans as oracle

C, K, F = 7, 4, 6


def _memory(kind, width, rng):
  if kind == 'matrix':
    return Matrix(rng.normal(size=(K, width)))
  return Mlp(w_in=rng.normal(size=(K, F)), w_out=rng.normal(size=(F, width)))


@pytest.mark.parametrize('width', [K, 1])
@pytest.mark.parametrize('kind', ['matrix', 'mlp'])
@pytest.mark.parametrize('objective', ['delta', 'l2'])
def test_the_closed_form_is_the_gradient(x64, objective, kind, width):
  """If this fails, a memory descends something else than its loss."""
  rng = np.random.default_rng(0)
  memory = _memory(kind, width, rng)
  k, target = rng.normal(size=(C, K)), rng.normal(size=(C, width))

  def loss(memory):
    y = memory_lib.read(memory, k)
    if objective == 'delta':
      return -jnp.sum(y * target)
    return 0.5 * jnp.sum((y - target) ** 2)

  plan = memory_lib.write_values(memory, k, target, objective=objective)
  for (x, u), gradient in zip(plan, jax.grad(loss)(memory)):
    np.testing.assert_allclose(-x.T @ u, gradient, atol=1e-12)


def test_a_gradient_does_not_reach_through_the_target():
  """If this fails, a self-made target is moved instead of reached for.

  The target is an argument: the inner gradient of memory M at v^ = M(v) is that
  of the loss with v^ held fixed, and differs from the gradient through both.
  """
  rng = np.random.default_rng(0)
  memory = _memory('matrix', K, rng)
  k, v = rng.normal(size=(2, C, K))

  def loss(memory, target):
    return 0.5 * jnp.sum((memory_lib.read(memory, k) - target) ** 2)

  target = memory_lib.read(memory, v)
  x, u = memory_lib.write_values(memory, k, target, objective='l2').first
  held = jax.grad(loss)(memory, target).w
  through = jax.grad(lambda m: loss(m, memory_lib.read(m, v)))(memory).w
  np.testing.assert_allclose(-x.T @ u, held, rtol=1e-4, atol=1e-4)
  assert np.abs(held - through).max() > 1


def test_reading_is_the_oracles_reading(x64):
  """If this fails, a memory is not z + z W, or z + phi(z W_in) W_out."""
  rng = np.random.default_rng(0)
  for kind in ('matrix', 'mlp'):
    for width in (K, 1):
      memory = _memory(kind, width, rng)
      z = rng.normal(size=(C, K))
      actual = memory_lib.read(memory, z)
      expected = np.stack([oracle.read(memory._asdict(), row) for row in z])
      np.testing.assert_allclose(actual, expected, atol=1e-13)


def test_activation_and_its_gradient(x64):
  """If this fails, the inner gradient of an MLP memory is off."""
  z = np.linspace(-5, 5, 41)
  np.testing.assert_allclose(
      memory_lib.activation(z), oracle.phi(z), atol=1e-14
  )
  step = 1e-6
  slope = (oracle.phi(z + step) - oracle.phi(z - step)) / (2 * step)
  np.testing.assert_allclose(
      memory_lib.activation_gradient(z), slope, atol=1e-9
  )


def test_a_memory_starts_close_to_the_identity():
  """If this fails, training starts from a memory that scrambles its input."""
  for hidden in (None, 4 * 32):
    memory = memory_lib.init(
        jax.random.key(0), key_dim=32, value_dim=32, hidden=hidden, heads=3
    )
    assert all(w.shape[0] == 3 for w in memory)
    z = dgd.unit(jax.random.normal(jax.random.key(1), (3, 5, 32)))
    moved = np.linalg.norm(memory_lib.read(memory, z) - z, axis=-1)
    assert 0.01 < moved.mean() < 0.3
    # Every head has a memory of its own.
    assert not np.allclose(memory.first[0], memory.first[1])


def test_one_step_of_rate_one_stores_its_value(x64):
  """If this fails, DGD at eta = 1 and unit keys is not the delta rule."""
  rng = np.random.default_rng(0)
  k = rng.normal(size=(1, K))
  k /= np.linalg.norm(k)
  value = rng.normal(size=(1, K))
  bank, members = dgd.pack({'m': _memory('matrix', K, rng)}, ('m',))
  with jax.disable_jit():
    new, _, _ = dgd.step(
        bank, bank, None,
        dgd.Chunk(k, {'m': value}, np.ones(1), np.zeros(1), None, np.ones(1)),
        members=members, rule=dgd.Rule(objective='delta', layers='all'),
    )
  np.testing.assert_allclose(k @ new.first, value, atol=1e-12)
  other = np.linalg.svd(k)[2][1:]
  np.testing.assert_allclose(other @ new.first, other @ bank.first, atol=1e-12)


def test_unit_is_a_unit_vector_and_safe_at_zero():
  """If this fails, an empty token has a gradient of NaN."""
  x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
  np.testing.assert_allclose(dgd.unit(x)[0], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_array_equal(dgd.unit(x)[1], 0)
  gradient = jax.grad(lambda x: jnp.sum(dgd.unit(x)))(x)
  assert np.isfinite(gradient).all()


def test_a_zero_vector_has_no_direction_and_no_gradient(x64):
  """If this fails, the first key of a document outweighs a training step."""
  x = np.random.default_rng(0).normal(size=(2, K)) * [[1.0], [0.0]]
  length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-12)
  np.testing.assert_allclose(dgd.unit(x), x / length, rtol=1e-15)
  slopes = jax.jit(jax.vmap(jax.jacobian(dgd.unit)))(x)
  np.testing.assert_array_equal(slopes[1], 0)
  expected = np.eye(K) - np.einsum('ci,cj->cij', x, x) / length[..., None] ** 2
  np.testing.assert_allclose(slopes[0], expected[0] / length[0], rtol=1e-12)
  curvature = jax.jacobian(jax.jacobian(dgd.unit))(x[1])
  assert np.isfinite(curvature).all()


def test_a_short_vector_has_a_small_derivative(x64):
  """If this fails, a first step makes the next one's gradient a thousandfold.

  The first keys are zero at initialisation, and short after one step.
  """
  direction = np.random.default_rng(0).normal(size=K)
  direction /= np.linalg.norm(direction)
  sizes = np.geomspace(1e-12, 10, 400)
  x = sizes[:, None] * direction
  slopes = jax.jit(jax.vmap(jax.jacobian(dgd.unit)))(x)
  steepest = np.linalg.norm(slopes, ord=2, axis=(1, 2))
  assert steepest.max() < 15.5
  assert (steepest[sizes < 1e-4] < 0.3).all()
  lengths = np.linalg.norm(dgd.unit(x), axis=-1)
  assert (np.diff(lengths) > 0).all() and lengths[-1] < 1
