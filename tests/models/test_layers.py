"""Attention, convolution and norms against NumPy."""

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ConfigError, ModelConfig
from hope_jax.models import attention_kernels
from hope_jax.models.attention import Attention
from hope_jax.models.layers import CausalConv, Norm, recall_tap_init
from hope_jax.models.packing import Packing, Place, locate
from tests.oracles import attention as oracle

T, D = 13, 8


def _packing(documents):
  """Packing of rows whose tokens are labelled with their document, from 1."""
  return locate(jnp.asarray(documents), None, *np.shape(documents))[0]


@pytest.mark.parametrize(
    ('tile', 'window'), [(256, 5), (2, 5), (2, 9), (1, 64)]
)
def test_attention_is_softmax_over_window_and_document(
    monkeypatch, tile, window
):
  """If this fails, attention weighs, turns or masks other than it says."""
  monkeypatch.setattr(attention_kernels, 'TILE', tile)
  config = ModelConfig(
      architecture='transformer', dim=D, heads=2, layers=1,
      attention_window=window,
  )
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, T, D)).astype(np.float32)
  documents = [[1] * T, [1] * 2 + [2] * 8 + [3] * 3]
  module = Attention(config)
  plain = Packing(None, None, None)
  init = jax.jit(module.init)
  params = meta.unbox(init(jax.random.key(0), x, None, plain))['params']
  params = jax.tree.map(
      lambda w: np.asarray(w + 0.3 * rng.normal(size=w.shape), np.float32),
      params,
  )
  flat = {n: params[n]['kernel'] for n in ('q', 'k', 'v', 'out')}
  flat |= {n: params[n]['scale'] for n in ('norm_q', 'norm_k')}

  def expected(row, documents):
    return oracle.attention(
        row, flat, heads=2, window=window, base=config.rope_base,
        documents=documents,
    )

  apply = jax.jit(module.apply)
  o, _ = apply({'params': params}, x, None, _packing(documents))
  for b in range(2):
    np.testing.assert_allclose(o[b], expected(x[b], documents[b]), atol=2e-5)
  o, _ = apply({'params': params}, x, None, plain)
  np.testing.assert_allclose(o[1], expected(x[1], [1] * T), atol=2e-5)


@pytest.mark.parametrize('window', [100, 300])
def test_splash_attention_is_the_form_of_xla(window):
  """If this fails, a TPU attends otherwise than a CPU: values or gradients."""
  rng = np.random.default_rng(0)
  q, k, v, d = rng.normal(size=(4, 2, 256, 2, 8)).astype(np.float32)
  ids = np.array([[0] * 150 + [1] * 106, [0] * 30 + [1] * 200 + [-1] * 26])
  seen, here = jnp.asarray(ids), jnp.maximum(jnp.asarray(ids), 0)

  def run(**options):
    def of(q, k, v):
      o = attention_kernels.attend(q, k, v, here, seen, window, **options)
      return jnp.where(seen[..., None, None] < 0, 0, o)  # padding: anything

    o, pull = jax.vjp(of, q, k, v)
    return o, pull(d)

  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
      run(implementation='splash', interpret=True), run(implementation='xla'),
  )


def test_an_implementation_refuses_what_it_does_not_take():
  """If this fails, a choice is overruled without a word."""
  x = jnp.zeros((1, 100, 1, 8))
  ids = jnp.zeros((1, 100), int)
  for name, complaint in (('splash', 'T=100'), ('cudnn', 'no GPU')):
    with pytest.raises(ConfigError, match=f"='{name}': .*{complaint}"):
      attention_kernels.attend(x, x, x, ids, None, 9, implementation=name)
  # With the keys of an earlier call there is one for all.
  long = jnp.zeros((1, 120, 1, 8))
  out = attention_kernels.attend(
      x, long, long, ids, None, 9, implementation='splash'
  )
  assert out.shape == x.shape


def test_a_cache_of_padding_alone_is_no_document():
  """If this fails, a token attends to keys of no token."""
  config = ModelConfig(
      architecture='transformer', dim=D, heads=2, layers=1, attention_window=3
  )
  x = np.random.default_rng(0).normal(size=(1, 7, D)).astype(np.float32)
  module = Attention(config)
  start, rest = x[:, :5], x[:, 5:]
  _, place = locate(jnp.zeros((1, 5), int), None, 1, 5)
  nothing, _ = locate(jnp.zeros((1, 5), int), None, 1, 5)
  variables = jax.jit(module.init)(jax.random.key(0), start, None, nothing)
  _, state = module.apply(variables, start, None, nothing)
  after, _ = locate(None, place, 1, 2)
  o, _ = module.apply(variables, rest, state, after)
  fresh, _ = module.apply(variables, rest, None, Packing(None, None, None))
  np.testing.assert_allclose(o, fresh, atol=1e-6)


@pytest.mark.parametrize('cut', [0, 2, 7])
def test_convolution_is_a_sum_of_earlier_tokens(cut):
  """If this fails, taps reach forward, or over a document's start."""
  width = 4
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, T, D)).astype(np.float32)
  documents = np.array([[1] * T, [1] * 2 + [2] * 8 + [3] * 3])
  module = CausalConv(width)
  kernel = rng.normal(size=(width, D)).astype(np.float32)
  expected = np.zeros_like(x)
  for b in range(2):
    for t in range(T):
      for i in range(width):
        if t >= i and documents[b, t - i] == documents[b, t]:
          expected[b, t] += kernel[i] * x[b, t - i]
  variables = {'params': {'kernel': kernel}}
  place, tail, outputs = None, None, []
  for at in (np.s_[:, :cut], np.s_[:, cut:]) if cut else (np.s_[:, :],):
    packing, place = locate(
        jnp.asarray(documents[at]), place, *documents[at].shape
    )
    y, tail = module.apply(
        variables, x[at], tail, packing.position, packing.present
    )
    outputs.append(y)
  np.testing.assert_allclose(
      np.concatenate(outputs, axis=1), expected, atol=1e-5
  )


def test_recall_taps_make_keys_of_the_queries_before():
  """If this fails, a memory does not predict from the first step on."""
  kernel = recall_tap_init(jax.random.key(0), (4, 3 * D), jnp.float32)
  x = np.random.default_rng(0).normal(size=(1, T, D)).astype(np.float32)
  wide = np.concatenate([x] * 3, axis=-1)
  y, _ = CausalConv(4).apply({'params': {'kernel': kernel}}, wide, None, None)
  q, k, v = np.split(np.asarray(y), 3, axis=-1)
  np.testing.assert_allclose(k[:, 1:], q[:, :-1], atol=1e-6)
  np.testing.assert_array_equal(k[:, 0], 0)
  np.testing.assert_array_equal(v, x)


def test_norm_is_a_root_mean_square():
  """If this fails, the residual stream enters layers at another size."""
  x = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
  scale = np.linspace(-0.5, 0.5, D).astype(np.float32)
  y = Norm().apply({'params': {'scale': scale}}, x)
  expected = np.stack([oracle.norm(row, scale) for row in x])
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  assert Norm().apply(
      {'params': {'scale': scale}}, x.astype(jnp.bfloat16)
  ).dtype == jnp.bfloat16


def _walk(ids, segment, position):
  """Document starts, presence and positions of a row, one token at a time."""
  starts, present, positions = [], [], []
  for i in ids:
    present.append(i != 0)
    starts.append(i not in (0, segment))
    if starts[-1]:
      segment, position = i, 0
    positions.append(position)
    position += i != 0
  return starts, present, positions, segment, position


def test_documents_are_found_as_by_hand():
  """If this fails, a memory restarts at a wrong token, or not at all."""
  rng = np.random.default_rng(0)
  rows, length = 64, 12
  ids = np.repeat(rng.integers(0, 4, (rows, length // 2)), 2, axis=1)
  segment = rng.integers(0, 4, rows)
  position = rng.integers(0, 9, rows)
  place = Place(jnp.asarray(segment), jnp.asarray(position))
  packing, end = locate(jnp.asarray(ids), place, rows, length)
  for b in range(rows):
    starts, present, positions, last, after = _walk(
        ids[b], segment[b], position[b]
    )
    np.testing.assert_array_equal(packing.starts[b], starts)
    np.testing.assert_array_equal(packing.present[b], present)
    at = np.flatnonzero(present)
    np.testing.assert_array_equal(
        packing.position[b][at], np.array(positions)[at]
    )
    assert (end.segment[b], end.position[b]) == (last, after)
  # Without ids a row goes on with its document.
  packing, end = locate(None, place, rows, length)
  assert packing.starts is None and packing.present is None
  np.testing.assert_array_equal(packing.position[:, 0], position)
  np.testing.assert_array_equal(end.position, position + length)
