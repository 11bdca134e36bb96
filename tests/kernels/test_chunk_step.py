"""One chunk, in all that `chunk_step` can do, against a serial oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.kernels.dgd import chunked, decays, products
from tests.oracles import recurrence as oracle

C, K, V = 11, 5, 4


def _inputs(seed=0):
  rng = np.random.default_rng(seed)
  q, k = rng.normal(size=(2, C, K))
  k = k / np.linalg.norm(k, axis=-1, keepdims=True)
  u = rng.normal(size=(C, V))
  eta = rng.uniform(0, 1, C)
  log_alpha = np.log(rng.choice([1.0, 0.9, 1e-3], C))
  log_mu = np.log(rng.choice([1e-6, 0.3, 0.9, 1.0], C))
  state, momentum = rng.normal(size=(2, K, V))
  return q, k, u, eta, log_alpha, log_mu, state, momentum


def _momentum(state, log_alpha, log_mu, present):
  decay = decays.decay(jnp.asarray(log_alpha))
  return state, decays.flow(decay, jnp.asarray(log_mu), present, 'float32')


@pytest.mark.parametrize('erase', [True, False])
@pytest.mark.parametrize('read', ['pre', 'post', 'chunk', None])
def test_momentum_is_the_token_serial_one(x64, read, erase):
  """If this fails, momentum delays or amplifies other than it says."""
  q, k, u, eta, la, log_mu, state, momentum = _inputs()
  expected = oracle.momentum_recurrence(
      q, k, u, eta, la, log_mu, state, momentum,
      read=read or 'pre', erase=erase,
  )
  with jax.disable_jit():
    actual = chunked.chunk_step(
        state, q if read else None, k, u, eta, la, read=read or 'pre',
        erase=erase,
        momentum=_momentum(momentum, la, log_mu, jnp.ones(C)),
    )
  for a, e in zip(actual, expected):
    if a is not None:
      np.testing.assert_allclose(a, e, atol=1e-12)
  assert (actual[0] is None) == (read is None)


@pytest.mark.parametrize('momentum', [True, False])
@pytest.mark.parametrize('erase', [True, False])
def test_an_absent_token_leaves_everything_as_it_was(x64, erase, momentum):
  """If this fails, padding writes to a memory or lets its momentum act."""
  q, k, u, eta, la, log_mu, state, velocity = _inputs()
  present = np.array([1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0], bool)
  expected = oracle.momentum_recurrence(
      *(x[present] for x in (q, k, u, eta, la)),
      log_mu[present] if momentum else np.full(present.sum(), -np.inf),
      state, velocity if momentum else 0 * velocity, read='pre', erase=erase,
  )
  eta, la, log_mu = (np.where(present, x, 0) for x in (eta, la, log_mu))
  with jax.disable_jit():
    o, new, new_velocity = chunked.chunk_step(
        state, q, k, u, eta, la, read='pre', erase=erase,
        momentum=_momentum(velocity, la, log_mu, jnp.asarray(present, float))
        if momentum else None,
    )
  np.testing.assert_allclose(o[present], expected[0], atol=1e-12)
  np.testing.assert_allclose(new, expected[1], atol=1e-12)
  if momentum:
    np.testing.assert_allclose(new_velocity, expected[2], atol=1e-12)


@pytest.mark.parametrize(
    'erase,momentum', itertools.product([True, False], [True, False])
)
def test_memories_side_by_side_are_memories_alone(x64, erase, momentum):
  """If this fails, memories that share a product share a rate or an output."""
  q, k, u, eta, la, log_mu, state, velocity = _inputs()
  shares = ((1, 1.0), (2, 0.1), (1, 0.5))

  def velocity_of(columns):
    if not momentum:
      return None
    return _momentum(velocity[:, columns], la, log_mu, jnp.ones(C))

  def step(columns, rate, shares):
    return chunked.chunk_step(
        state[:, columns], q, k, u[:, columns], rate * eta, la, read='pre',
        erase=erase, momentum=velocity_of(columns), shares=shares,
    )

  with jax.disable_jit():
    together = step(slice(None), 1, shares)
    alone = [
        step(columns, share, None)
        for columns, share in ((slice(1), 1), (slice(1, 3), 0.1),
                               (slice(3, 4), 0.5))
    ]
  np.testing.assert_allclose(together[0], alone[0][0], atol=1e-13)
  for i in (1, 2) if momentum else (1,):
    side_by_side = np.concatenate([a[i] for a in alone], axis=-1)
    np.testing.assert_allclose(together[i], side_by_side, atol=1e-13)


def test_the_inverse_survives_equal_keys():
  """If this fails, repeated keys blow the inverse up, as in Neumann series."""
  for size in (1, 2, 3, 16, 40):
    lower = np.tril(np.ones((size, size)), -1)
    inverse = products.inverse_unit_lower(jnp.asarray(lower, jnp.float32))
    error = inverse @ (np.eye(size) + lower) - np.eye(size)
    assert np.abs(error).max() < 1e-5


def test_the_solve_has_the_gradient_of_a_solve(x64):
  """If this fails, the hand-written derivative of the solve is wrong."""
  rng = np.random.default_rng(0)
  lower = np.tril(rng.normal(size=(C, C)), -1)
  rhs, weight = rng.normal(size=(2, C, V))

  def ours(lower, rhs):
    inverse = products.inverse_unit_lower(jax.lax.stop_gradient(lower))
    solved = products.unit_lower_solve(lower, inverse, rhs, 'float32')
    return jnp.sum(weight * solved)

  value, (d_lower, d_rhs) = jax.value_and_grad(ours, (0, 1))(lower, rhs)
  solved = np.linalg.solve(np.eye(C) + lower, rhs)
  np.testing.assert_allclose(value, np.sum(weight * solved), rtol=1e-12)
  adjoint = np.linalg.solve((np.eye(C) + lower).T, weight)
  np.testing.assert_allclose(d_rhs, adjoint, atol=1e-12)
  np.testing.assert_allclose(
      np.tril(d_lower, -1), np.tril(-adjoint @ solved.T, -1), atol=1e-12
  )
