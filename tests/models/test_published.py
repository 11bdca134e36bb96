"""Baselines as published, whole layers against an oracle in NumPy."""

import functools
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import (
  ConfigError,
  LinearConfig,
  ModelConfig,
  TitansConfig,
  TttConfig,
)
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.models.packing import Packing
from hope_jax.sharding import unbox
from tests.oracles import baselines as oracle

T, DIM, HEADS = 11, 16, 2
CHUNK = 4
SIGNED = {'linear': LinearConfig(eigenvalues='signed')}
MATRIX = {'titans': TitansConfig(memory='matrix', chunk=CHUNK)}
MLP = {'titans': TitansConfig(memory='mlp', expansion=2, chunk=CHUNK)}
TTT = {'ttt': TttConfig(mini_batch=CHUNK)}
# (architecture, configuration, oracle)
LAYERS = {
    'linear_attention': (
        'linear_attention_published', {}, oracle.linear_attention
    ),
    'retnet': ('retnet_published', {}, oracle.retnet),
    'deltanet': ('deltanet_published', {}, oracle.deltanet),
    'deltanet_signed': (
        'deltanet_published', SIGNED,
        functools.partial(oracle.deltanet, signed=True),
    ),
    'gated_deltanet': ('gated_deltanet_published', {}, oracle.deltanet),
    'gated_deltanet_signed': (
        'gated_deltanet_published', SIGNED,
        functools.partial(oracle.deltanet, signed=True),
    ),
    'ttt_linear': (
        'ttt_linear', TTT,
        functools.partial(oracle.ttt, rate=1.0, chunk=CHUNK),
    ),
    'ttt_mlp': (
        'ttt_mlp', TTT, functools.partial(oracle.ttt, rate=0.1, chunk=CHUNK)
    ),
    'titans_matrix': (
        'titans_lmm', MATRIX,
        functools.partial(oracle.titans, chunk=CHUNK, most=1 / CHUNK),
    ),
    'titans_mlp': (
        'titans_lmm', MLP,
        functools.partial(
            oracle.titans, chunk=CHUNK, most=2 * HEADS / DIM / CHUNK
        ),
    ),
}
GATES = (
    'w_beta', 'w_alpha', 'w_eta', 'w_theta', 'w_mu', 'a_log', 'dt_bias', 'tau',
)


def make_mixer(architecture, changes):
  """The layer of a name, as a block has it."""
  config = ModelConfig(
      architecture=architecture, dim=DIM, heads=HEADS, layers=1, **changes
  )
  entry = ARCHITECTURES[architecture]
  return pkgutil.resolve_name(str(entry.mixer))(config, **entry.options)


@functools.cache
def compiled(name):
  """(params, x) -> what the layer adds; and the parameters it starts with."""
  module = make_mixer(*LAYERS[name][:2])
  nothing = None, Packing(None, None, None)
  init = jax.jit(module.init)
  params = init(jax.random.key(0), jnp.zeros((1, T, DIM)), *nothing)
  params = jax.tree.map(np.asarray, unbox(params['params']))

  @jax.jit
  def run(params, x):
    return module.apply({'params': params}, x, *nothing)[0]

  return run, params


def moved(params, rng):
  """Parameters with no zeros, ones or symmetries."""
  return jax.tree.map(
      lambda w: (w + 0.1 * rng.normal(size=w.shape)).astype(w.dtype), params
  )


def extreme(params, rng):
  """Gates at 0 and at 1: logits of +-100, retentions of 1 and of nothing."""
  params = moved(params, rng)
  for name in set(GATES) & set(params):
    params[name] = 100 * np.sign(params[name]).astype(np.float32)
  if 'a_log' in params:
    params['a_log'] = np.array([-40, 4], np.float32)
  if 'tau' in params:
    params['tau'] = np.array([-2, 0, 1, 0.5], np.float32)
  return params


# What has no zeros is the sharpest; a start has many.
@pytest.mark.parametrize(
    'place',
    [pytest.param('initial', marks=pytest.mark.slow), 'moved', 'extreme'],
)
@pytest.mark.parametrize('name', list(LAYERS))
def test_it_is_the_published_layer(name, place):
  """If it fails, Hope is compared with another model than the row's name."""
  run, params = compiled(name)
  rng = np.random.default_rng(1)
  if place != 'initial':
    params = {'moved': moved, 'extreme': extreme}[place](params, rng)
  x = rng.normal(size=(1, T, DIM)).astype(np.float32)
  wide = jax.tree.map(np.float64, params)
  expected = LAYERS[name][2](wide, np.float64(x[0]), HEADS)
  found = np.asarray(run(params, x))[0]
  assert np.isfinite(found).all()
  error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
  assert error < 1e-6


@pytest.mark.parametrize(
    ('of', 'linear'),
    [
        ('key', LinearConfig(key_expansion=0.8)),
        ('value', LinearConfig(value_expansion=0.8)),
    ],
)
def test_widths_that_heads_do_not_divide_are_refused(of, linear):
  """If it fails, a published layer of an odd width is a traceback."""
  module = make_mixer('deltanet_published', {'linear': linear})
  with pytest.raises(ConfigError, match=f'^model.linear.{of}_expansion'):
    module.init(
        jax.random.key(0), jnp.zeros((1, T, DIM)), None,
        Packing(None, None, None),
    )
