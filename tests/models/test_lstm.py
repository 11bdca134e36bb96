"""The LSTM mixer against the cell of Flax."""

from flax.core import meta
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ModelConfig
from hope_jax.models.lstm import Lstm
from hope_jax.models.packing import Packing


def test_it_is_the_cell_of_flax():
  """If it fails, the LSTM row is no LSTM."""
  dim, x = 8, np.random.default_rng(0).normal(size=(2, 7, 8)).astype('f4')
  model = Lstm(ModelConfig(dim=dim, heads=1, architecture='lstm'))
  packing = Packing(None, None, None)
  params = jax.jit(model.init)(jax.random.key(0), x, None, packing)['params']
  params = meta.unbox(params)
  params['bias'] = params['bias'] + np.linspace(-1, 1, 4 * dim)
  y, state = model.apply({'params': params}, x, None, packing)

  names = ('i', 'f', 'g', 'o')
  parts = [
      jnp.split(params[n]['kernel'] if n == 'input' else params[n], 4, axis=-1)
      for n in ('input', 'recurrent', 'bias')
  ]
  cell = {}
  for i, name in enumerate(names):
    cell[f'i{name}'] = {'kernel': parts[0][i]}
    cell[f'h{name}'] = {'kernel': parts[1][i], 'bias': parts[2][i]}
  flax_lstm = nn.RNN(nn.OptimizedLSTMCell(dim), return_carry=True)
  variables = {'params': {'cell': cell}}
  (c, _), h = flax_lstm.apply(variables, x)
  expected = h @ params['out']['kernel']
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(state['c'], c, atol=1e-5)
