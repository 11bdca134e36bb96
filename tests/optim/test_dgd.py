"""The DGD weight gradient: its proximal problem, every framework, limits."""

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from hope_jax import optim
from tests.oracles import optimizers as oracle

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4))
W = RNG.normal(size=(4, 3))
TARGET = RNG.normal(size=(5, 3))


def mean_loss(y):
  return 0.5 * jnp.mean(jnp.sum((y - TARGET[: len(y)]) ** 2, axis=-1))


def expected_gradient(x, w, eta, share):
  """sum_t x_t (d_t + share y_t)^T / (1 + eta |x_t|^2), token by token."""
  y = x @ w
  total = np.zeros_like(w)
  for x_t, y_t, target in zip(x, y, TARGET):
    d = (y_t - target) * share
    total += np.outer(x_t, d + share * y_t) / (1 + eta * x_t @ x_t)
  return total


@pytest.mark.parametrize('eta', [0.1, 1.0, 30.0])
def test_a_step_solves_its_proximal_problem(eta):
  """To 1e-6, by normal equations and by a numerical minimiser."""
  x, d = X[0], X[0] @ W - TARGET[0]
  with jax.enable_x64(True):
    grad = jax.grad(
        lambda w: mean_loss(optim.delta_dot(jnp.asarray(X[:1]), w, eta))
    )(jnp.asarray(W))
  stepped = W - eta * np.asarray(grad)
  np.testing.assert_allclose(stepped, oracle.dgd_step(W, x, d, eta), atol=1e-10)

  def problem(w):
    w = w.reshape(W.shape)
    near = np.sum((w - W) ** 2) / (2 * eta)
    return 0.5 * np.sum((x @ w + d) ** 2) + near

  found = optimize.minimize(problem, W.ravel(), tol=1e-14)
  np.testing.assert_allclose(stepped.ravel(), found.x, atol=1e-6)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('eta', [0.0, 0.7])
def test_batches_and_inputs(eta, reduction):
  """If it fails, the delta term leaks into the input's gradient or a row's."""
  share = 1 / len(X) if reduction == 'mean' else 1.0

  def loss(dot):
    def of(x, w):
      return mean_loss(dot(x, w)) * share * len(X)

    return jax.grad(of, argnums=(0, 1))

  with jax.enable_x64(True):
    x, w = jnp.asarray(X), jnp.asarray(W)
    delta = lambda x, w: optim.delta_dot(x, w, eta, reduction=reduction)
    dx, dw = loss(delta)(x, w)
    plain, _ = loss(jnp.dot)(x, w)
    np.testing.assert_array_equal(delta(x, w), x @ w)
  np.testing.assert_allclose(dx, plain, atol=1e-12)
  np.testing.assert_allclose(
      dw, expected_gradient(X, W, eta, share), atol=1e-12
  )


def test_linen_nnx_and_jax_agree():
  dot_general = optim.delta_dot_general(0.3)
  x = jnp.asarray(X, jnp.float32)
  kernel = jnp.asarray(W, jnp.float32)

  linen = nn.Dense(3, use_bias=False, dot_general=dot_general)
  by_linen = jax.grad(
      lambda p: mean_loss(linen.apply({'params': p}, x))
  )({'kernel': kernel})['kernel']

  layer = nnx.Linear(
      4, 3, use_bias=False, dot_general=dot_general, rngs=nnx.Rngs(0)
  )
  layer.kernel[...] = kernel
  by_nnx = nnx.grad(lambda m: mean_loss(m(x)))(layer).kernel[...]

  expected = expected_gradient(X, W, 0.3, 1 / len(X))
  np.testing.assert_allclose(by_linen, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(by_nnx, expected, rtol=1e-5, atol=1e-6)


def test_stacked_layers_under_scan_remat_and_vmap():
  """Each layer of a stack gets the gradient it gets unrolled."""
  stack = jnp.asarray(RNG.normal(size=(3, 4, 4)) * 0.5, jnp.float32)
  x = jnp.asarray(X, jnp.float32)

  def scanned(stack):
    def layer(x, w):
      """carry: the activations; xs: one layer's weight."""
      return jnp.tanh(optim.delta_dot(x, w, 0.2)), None

    y, _ = jax.lax.scan(jax.checkpoint(layer), x, stack)
    return jnp.mean(jnp.sum(y**2, axis=-1))

  def unrolled(stack):
    y = x
    for w in stack:
      y = jnp.tanh(optim.delta_dot(y, w, 0.2))
    return jnp.mean(jnp.sum(y**2, axis=-1))

  np.testing.assert_allclose(
      jax.grad(scanned)(stack), jax.grad(unrolled)(stack), rtol=1e-5, atol=1e-7
  )
  both = jax.vmap(jax.grad(unrolled))(jnp.stack([stack, 2 * stack]))
  np.testing.assert_allclose(
      both[1], jax.grad(unrolled)(2 * stack), rtol=1e-5, atol=1e-6
  )


def test_rows_in_several_axes_and_a_contraction_of_two():
  """Attention's projections contract two axes of a [B, T, H, K] input."""
  x = jnp.asarray(RNG.normal(size=(2, 3, 2, 4)), jnp.float32)
  w = jnp.asarray(RNG.normal(size=(2, 4, 5)), jnp.float32)
  numbers = (((2, 3), (0, 1)), ((), ()))
  target = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)

  def loss(y):
    return 0.5 * jnp.mean(jnp.sum((y - target) ** 2, axis=-1))

  dot = optim.delta_dot_general(0.4)
  got = jax.grad(lambda w: loss(dot(x, w, numbers)))(w)
  flat = jax.grad(
      lambda w: loss(
          optim.delta_dot(x.reshape(2, 3, 8), w.reshape(8, 5), 0.4)
      )
  )(w)
  np.testing.assert_allclose(got, flat, rtol=1e-5, atol=1e-6)


def test_contracts_along_the_input_whatever_the_rate():
  """eta' |x|^2 < 1: repeated steps without a loss shrink W along x only."""
  x = jnp.asarray(X[:1], jnp.float32) * 10
  w = jnp.asarray(W, jnp.float32)
  tx = optim.dgd(100.0)
  grad = jax.grad(lambda w: 0 * jnp.sum(optim.delta_dot(x, w, 100.0)))(w)
  updates, _ = tx.update(grad, tx.init(w), w)
  after = optax.apply_updates(w, updates)
  np.testing.assert_allclose(x @ after, 0 * (x @ w), atol=1e-2)
  away = np.linalg.svd(np.asarray(x))[2][1:]
  np.testing.assert_allclose(away @ after, away @ w, atol=2e-4)
