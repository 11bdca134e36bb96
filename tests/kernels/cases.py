"""Inputs in all regimes of gates and keys, and the bounds on errors.

Bounds are those of the design for relative Frobenius errors: 1e-12 and 1e-11 in
float64, 5e-6 / 1e-5 / 2e-5 in float32, 1.5e-2 / 2e-2 / 3e-2 with bfloat16
operands (outputs and states / gradients of vectors / gradients of gates), and
five times that where eta |k|^2 is between 1 and 1.9.
"""

import numpy as np

NAMES = ('q', 'k', 'u', 'eta', 'log_alpha', 'state')
READS = ('pre', 'post', 'chunk')
# Outputs and states, gradients of vectors, gradients of gates.
BOUNDS = {
    'float64': (1e-12, 1e-11, 1e-11),
    'float32': (5e-6, 1e-5, 2e-5),
    'bf16': (1.5e-2, 2e-2, 3e-2),
}


def inputs(regime, shape, seed=0):
  """Inputs of a regime for (B, T, H, K, V); all exact in float32."""
  B, T, H, K, V = shape
  rng = np.random.default_rng(seed)

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  q = rng.normal(size=(B, T, H, K))
  k = unit(rng.normal(size=(B, T, H, K)))
  u = rng.normal(size=(B, T, H, V))
  eta = rng.uniform(0, 1, (B, T, H))
  log_alpha = np.log(rng.uniform(0.9, 1, (B, T, H)))
  state = rng.normal(size=(B, H, K, V))
  if regime == 'keep':
    log_alpha[:] = 0
  elif regime == 'forget':
    log_alpha[:] = np.log(1e-3)
  elif regime == 'mixed':
    choice = rng.integers(0, 3, log_alpha.shape)
    log_alpha = np.choose(choice, [0 * log_alpha, log_alpha, np.log(1e-3)])
  elif regime == 'same_keys':
    k[:], eta[:], log_alpha[:] = k[:, :1], 1, 0
  elif regime == 'zero_keys':
    k[:, ::3] = 0
  elif regime == 'silent':
    eta[:] = 0
  elif regime == 'reflect':
    k = unit(k + unit(rng.normal(size=(B, 1, H, K))))
    eta = rng.uniform(1, 1.9, eta.shape)
    log_alpha[:] = 0
  elif regime == 'long_keys':
    k = 3 * k
    eta = eta / 9
  values = (q, k, u, eta, log_alpha, state)
  return tuple(x.astype(np.float32).astype(np.float64) for x in values)


REGIMES = (
    'plain', 'keep', 'forget', 'mixed', 'same_keys', 'zero_keys', 'silent',
    'reflect', 'long_keys',
)


def cotangents(shape):
  B, T, H, K, V = shape
  rng = np.random.default_rng(99)
  return rng.normal(size=(B, T, H, V)), rng.normal(size=(B, H, K, V))


def reset(shape):
  """A state for segments to start from that is not the one that enters."""
  B, T, H, K, V = shape
  values = np.random.default_rng(7).normal(size=(B, H, K, V))
  return values.astype(np.float32).astype(np.float64)


def segments(length):
  """Starts at 1, 3, 16, 17, 18, 39 in one row, at 10 and 26 in the other."""
  t = np.arange(length)
  first = sum((t >= s).astype(int) for s in (1, 3, 16, 17, 18, 39))
  # Ids need not grow: only a change counts.
  second = 5 - 2 * (t >= 10) + 7 * (t >= 26)
  return np.stack([first, second]).astype(np.int32)


def check(actual, expected, bounds, what):
  names = ('o', 'final', *(f'd{n}' for n in NAMES), 'dreset')
  of_gates = ('deta', 'dlog_alpha')
  for name, a, e in zip(names, actual, expected):
    a = np.asarray(a, np.float64)
    assert np.isfinite(a).all(), f'{what}: {name} is not finite'
    value, vector, gate = bounds
    bound = gate if name in of_gates else value
    bound = vector if name.startswith('d') and name not in of_gates else bound
    # A quantity that is zero by right has no relative error.
    scale = max(np.linalg.norm(e), 1e-2)
    error = np.linalg.norm(a - e) / scale
    assert error <= bound, f'{what}: {name} off by {error:.1e} > {bound:.1e}'
