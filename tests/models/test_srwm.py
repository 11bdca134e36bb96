"""The self-referential weight matrix against its equations, token by token."""

from flax.core import meta
import jax
import numpy as np

from hope_jax.config import ModelConfig
from hope_jax.models.packing import Packing
from hope_jax.models.srwm import Srwm


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def test_it_is_the_published_recurrence():
  """If it fails, the SRWM row is no self-referential weight matrix."""
  rng = np.random.default_rng(0)
  dim, heads, length = 12, 2, 9
  x = rng.normal(size=(2, length, dim)).astype('f4')
  model = Srwm(ModelConfig(dim=dim, heads=heads, architecture='srwm'))
  packing = Packing(None, None, None)
  init = jax.jit(model.init)
  params = meta.unbox(init(jax.random.key(0), x, None, packing)['params'])
  # Far from its small start, so that every part of it acts.
  params['initial'] = rng.normal(size=params['initial'].shape).astype('f4')
  y, state = model.apply({'params': params}, x, None, packing)

  d = dim // heads
  parts = np.repeat(np.arange(4), (d, d, d, 4))
  expected = np.zeros((2, length, dim))
  for row in range(2):
    for h in range(heads):
      w = params['initial'][h].astype('f8').T  # [3 d + 4, d], as published
      for t in range(length):
        z = w @ softmax(x[row, t, h * d : (h + 1) * d].astype('f8'))
        out, k, q, b = z[:d], z[d : 2 * d], z[2 * d : 3 * d], z[3 * d :]
        rate = (1 / (1 + np.exp(-b)))[parts]
        error = w @ softmax(q) - w @ softmax(k)
        w = w + np.outer(rate * error, softmax(k))
        expected[row, t, h * d : (h + 1) * d] = out
      np.testing.assert_allclose(state['w'][row, h].T, w, atol=1e-5)
  kernel = np.asarray(params['out']['kernel'], 'f8')
  np.testing.assert_allclose(y, expected @ kernel, atol=1e-5)
