"""Titans and TTT as settings of the DGD memory, against gradient descent.

The expected outputs are a token at a time, with `jax.grad` of the inner loss:
nothing of `nested/` but unit vectors and the forms of streams and parameters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.models.mixers import titans_options
from hope_jax.nested import titans
from hope_jax.nested.dgd import unit
from tests.nested.titans_cases import H, make_params, make_streams, plain

T = 11


def read(w, z):
  """The memory of Eq. 89, or a matrix, with its path around where it fits."""
  if 'w' in w:
    y = z @ w['w']
  else:
    hidden = z @ w['w_in']
    y = jax.nn.gelu(hidden, approximate=False) / hidden.shape[-1] ** 0.5
    y = y @ w['w_out']
  return z + y if y.shape == z.shape else y


@jax.jit
def gradient(w, k, v):
  """Of 1/2 |M(k) - v|^2."""
  return jax.grad(lambda w: 0.5 * jnp.sum((read(w, k) - v) ** 2))(w)


def expect(params, x, config, head):
  """Titans Eq. 8-14 with `momentum` and `retention`, or TTT without both."""
  memories = jax.tree.map(lambda w: w[head], plain(params['memories']))
  of = memories.get
  w = copy = of('memory')
  s = jax.tree.map(jnp.zeros_like, w)
  outputs = []
  for t in range(T):
    xq, xk, xv = (unit(stream[0, t, head]) for stream in x)
    k, v = unit(read(of('k'), xk)), read(of('v'), xv)
    q = unit(xq @ params['w_q'][head])
    gate = lambda n: jax.nn.sigmoid(
        read(of(n), xk)[0] + params[f'bias_{n}'][head]  # noqa: B023
    )
    alpha = gate('alpha') if config.retention else 1.0
    eta = alpha * gate('eta') / config.chunk
    if t % config.chunk == 0:
      copy = w
    outputs.append(read(w, q))
    write = jax.tree.map(lambda g: -eta * g, gradient(copy, k, v))  # noqa: B023
    if config.momentum:
      mu = jax.nn.sigmoid(xk @ params['w_mu'][head] + params['bias_mu'][head])
      write = s = jax.tree.map(
          lambda s, d: mu * s + (1 - mu) * d, s, write  # noqa: B023
      )
    w = jax.tree.map(lambda w, d: alpha * w + d, w, write)  # noqa: B023
  return jnp.stack(outputs)


@pytest.mark.parametrize('chunk', [1, 4])
@pytest.mark.parametrize(
    ('architecture', 'memory'),
    [('titans', 'matrix'), ('titans', 'mlp'), ('ttt', '')],
)
def test_it_is_gradient_descent_on_the_published_loss(
    x64, architecture, memory, chunk
):
  """If it fails, the row is another model than its name."""
  form = dict(memory=memory) if memory else {}
  config = ModelConfig(
      architecture=architecture,
      titans=TitansConfig(chunk=chunk, projection_chunk=chunk, **form),
  ).titans
  params, x = make_params(config.memory), make_streams(T, batch=1)
  options = titans_options(config, 'float32')
  assert options.layers == 'none' and not options.adaptive
  layer = jax.jit(functools.partial(titans.layer, options=options))
  o, _, _ = layer(params, x)
  for head in range(H):
    np.testing.assert_allclose(
        o[0, :, head], expect(params, x, config, head), atol=1e-11
    )
