"""Adam and AdaGrad as optimal memories of gradients (NL App. B), in float64.

Each test solves the ridge problem that the paper states, by its definition, and
finds the optimizer's step in the solution.
"""

import numpy as np
import optax
import pytest
from scipy import optimize

RNG = np.random.default_rng(0)
GRADS = RNG.normal(size=(8, 5))


def ridge(grads, target, penalty=0.0):
  """argmin_m sum_i |m * g_i - P|^2 + penalty |m|^2, elementwise (Eq. 100)."""
  solved = []
  for g, p in zip(grads.T, target):
    a = np.append(g, np.sqrt(penalty))
    b = np.append(np.full(len(g), p), 0.0)
    solved.append(np.linalg.lstsq(a[:, None], b, rcond=None)[0][0])
  return np.array(solved)


def test_target_sum_of_squares_gives_momentum():
  """P = sum g^2: the optimal memory is the sum of gradients (Eq. 104)."""
  step = ridge(GRADS, np.sum(GRADS**2, axis=0))
  np.testing.assert_allclose(step, GRADS.sum(axis=0), rtol=1e-10)
  # ... which is optax's momentum at decay 1.
  trace = optax.trace(1.0)
  state = trace.init(GRADS[0])
  for g in GRADS:
    update, state = trace.update(g, state)
  np.testing.assert_allclose(step, update, rtol=1e-5)


def test_target_root_of_squares_gives_adam():
  """P = sqrt(sum g^2): m = sum g / sqrt(sum g^2), Adam's step (Eq. 105).

  Up to the scale 1 / sqrt(steps): Adam averages both sums. Its decays go to 1,
  where its bias correction turns its two averages into plain means.
  """
  step = ridge(GRADS, np.sqrt(np.sum(GRADS**2, axis=0)))
  adam = np.mean(GRADS, axis=0) / np.sqrt(np.mean(GRADS**2, axis=0))
  np.testing.assert_allclose(step / np.sqrt(len(GRADS)), adam, rtol=1e-10)
  tx = optax.scale_by_adam(b1=1 - 1e-4, b2=1 - 1e-4, eps=0)
  state = tx.init(GRADS[0])
  for g in GRADS:
    update, state = tx.update(g, state)
  np.testing.assert_allclose(adam, update, rtol=1e-2)


@pytest.mark.parametrize('penalty', [0.0, 0.3])
def test_the_ridge_solution_is_the_printed_one(penalty):
  """m* = (H + lambda)^-1 sum(g) P (Eq. 102), against a numerical minimiser."""
  target = np.sqrt(np.sum(GRADS**2, axis=0))
  printed = GRADS.sum(0) * target / (np.sum(GRADS**2, axis=0) + penalty)
  np.testing.assert_allclose(ridge(GRADS, target, penalty), printed, rtol=1e-10)

  def objective(m):
    return np.sum((m * GRADS - target) ** 2) + penalty * np.sum(m**2)

  found = optimize.minimize(objective, np.zeros(5), tol=1e-12).x
  np.testing.assert_allclose(found, printed, atol=1e-5)


def test_matrix_case_gives_adagrad():
  """P = (sum g g^T)^(1/2): m = H^(-1/2) sum g, full AdaGrad (Eq. 106-111).

  As printed, |m g - P| compares a vector with a matrix. The problem that has
  the printed solution is the elementwise one in the eigenbasis of H: there P is
  the root of the sum of squares of each coordinate.
  """
  h = GRADS.T @ GRADS
  _, basis = np.linalg.eigh(h)
  rotated = GRADS @ basis
  step = basis @ ridge(rotated, np.sqrt(np.sum(rotated**2, axis=0)))
  total = GRADS.sum(axis=0)
  values, vectors = np.linalg.eigh(h)
  np.testing.assert_allclose(
      step, vectors @ ((vectors.T @ total) / np.sqrt(values)), rtol=1e-9
  )
  # The solution is the printed one, H^-1 P sum(g), and whitens: |H^(1/2) m| is
  # the length of sum(g).
  root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
  np.testing.assert_allclose(
      step, np.linalg.solve(h, root @ total), rtol=1e-9
  )


def test_diagonal_adagrad_is_optax_s():
  """Where H is diagonal, the same step is that of optax.scale_by_rss."""
  target = np.sqrt(np.sum(GRADS**2, axis=0))
  tx = optax.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
  state = tx.init(GRADS[0])
  for g in GRADS:
    update, state = tx.update(g, state)
  np.testing.assert_allclose(update, GRADS[-1] / target, rtol=1e-5)
  # The memory of the last gradient alone, with the target of all (b1 = 0).
  step = ridge(GRADS, target) * GRADS[-1] / GRADS.sum(axis=0)
  np.testing.assert_allclose(step, update, rtol=1e-5)
