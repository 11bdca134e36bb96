"""The self-modifying layer against a token-serial oracle in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import dgd, titans, titans_tile
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.memory import Matrix, Mlp
from tests.marks import quick
from tests.nested.titans_cases import (
  DEFAULT,
  VARIANTS,
  B,
  H,
  K,
  T,
  assert_state,
  compiled,
  cut,
  expect,
  inputs,
  make_gates,
  make_params,
  make_streams,
  options,
  packing,
  run,
  run_packed,
)
from tests.oracles import titans as oracle

# With an MLP, one of each thing that its gradient sees differently.
CORE = ('default', 'l2', 'adaptive_q', 'titans')
FORMS = quick(
    [(variant, kind) for variant in VARIANTS for kind in ('matrix', 'mlp')],
    [(variant, 'matrix') for variant in VARIANTS]
    + [(variant, 'mlp') for variant in CORE],
)


@pytest.mark.parametrize('variant,kind', FORMS)
def test_layer_is_the_token_serial_layer(x64, variant, kind):
  """If this fails, the layer is not the equations in its docstring."""
  params, x, gates, changes = inputs(kind, variant)
  o, state, diagnostics = run(params, x, gates=gates, **changes)
  expected, *expected_state = expect(params, x, gates=gates, **changes)
  np.testing.assert_allclose(o, expected, atol=1e-11)
  assert_state(state, expected_state)
  limit = 2 if changes.get('eigenvalues') == 'signed' else 1
  if 'integer' in variant:  # A rate that is rounded is its bound.
    limit += 1e-9
  assert 0 < diagnostics['max_write'] < limit or 'l2' in variant
  assert diagnostics['mean_alpha'] <= 1
  assert diagnostics['least_eigenvalue'] >= 1 - limit or 'l2' in variant


@pytest.mark.parametrize('chunk', [1, 16])
@pytest.mark.parametrize('erases', [True, False])
def test_the_layer_is_deltanet_and_linear_attention(x64, chunk, erases):
  """If it fails, Hope's layer does not hold what it should be no worse than.

  Static keys, values as long as they come, gates of the layer's input and no
  query in the answer: M_t = M_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,
  and without the erasure and beta = 1 linear attention.
  """
  x, gates = make_streams(), make_gates()
  params = jax.tree.map(np.zeros_like, make_params('matrix'))
  params['w_q'] = np.stack([np.eye(K)] * H)
  if not erases:
    params['bias_eta'] = np.full(H, 50.0)
  q, k = (s / np.linalg.norm(s, axis=-1, keepdims=True) for s in (x.q, x.k))
  beta = 1 / (1 + np.exp(-gates.eta)) if erases else np.ones(x.k.shape[:-1])
  o, state, _ = run(
      params, x, gates=gates, chunk=chunk, projection_chunk=chunk,
      adaptive=(), retention=False, momentum=False, target='value',
      values='length', read='after', read_residual='none',
      layers='all' if erases else 'none',
  )
  for b, h in np.ndindex(B, H):
    w = np.zeros((K, K))
    for t in range(T):
      kt, vt = k[b, t, h], x.v[b, t, h]
      erased = np.outer(kt, kt @ w) if erases else 0
      w = w + beta[b, t, h] * (np.outer(kt, vt) - erased)
      np.testing.assert_allclose(o[b, t, h], q[b, t, h] @ w, atol=1e-6)
    np.testing.assert_allclose(state.memories['memory'].w[b, h], w, atol=1e-6)
  assert not state.frozen


@pytest.mark.parametrize(
    'changes,names',
    [
        ({}, {'memory', 'k', 'v', 'eta', 'alpha'}),
        (dict(chunk=1, projection_chunk=1), set()),
        (dict(target='value'), {'k', 'v', 'eta', 'alpha'}),
        (dict(target='value', read='boundary', adaptive=()), {'memory'}),
        (dict(target='value', objective='l2'),
         {'memory', 'k', 'v', 'eta', 'alpha'}),
        (dict(target='value', projection_chunk=1), set()),
        (dict(projection_chunk=1), {'memory'}),
    ],
)
def test_a_state_holds_the_copies_that_are_read(changes, names):
  """If it fails, a stream carries bytes that nothing reads, or lacks some."""
  params = make_params('matrix')
  state = titans.initial_state(params, B, options(**changes))
  assert set(state.frozen) == names
  layer = functools.partial(run, **changes)
  _, state, _ = jax.eval_shape(layer, params, make_streams())
  assert set(state.frozen) == names
  mlp = titans.initial_state(make_params('mlp'), B, options(target='value'))
  assert 'memory' in mlp.frozen  # its gradient is taken there


def test_rows_and_heads_are_independent():
  """If this fails, one text changes the memory of another."""
  params, x = make_params('mlp'), make_streams()
  starts, _ = packing('documents')
  before, state, _ = run_packed(params, x, starts)
  changed = jax.tree.map(lambda s: s.copy(), x)
  for s in jax.tree.leaves(changed):
    s[1, :, 1] = 2 - s[1, :, 1]
  after, new, _ = run_packed(params, changed, starts)
  np.testing.assert_array_equal(before[0], after[0])
  np.testing.assert_array_equal(before[1, :, 0], after[1, :, 0])
  assert (before[1, :, 1] != after[1, :, 1]).any()
  jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a[0], b[0]), state, new
  )


def test_without_learning_the_layer_is_its_initial_memories(x64):
  """eta = 0 and alpha = 1 leave static projections; else a write leaks."""
  params, x = dict(make_params('matrix')), make_streams()
  params['bias_eta'] = np.full(H, -80.0)
  o, state, _ = run(
      params, x, retention=False, adaptive=('k', 'v', 'eta')
  )
  q = dgd.unit(jnp.einsum('bthk,hkj->bthj', dgd.unit(x.q), params['w_q']))
  for h in range(H):
    memory = params['memories'][titans.MAIN]
    memory = jax.tree.map(lambda w: w[h], memory)._asdict()  # noqa: B023
    expected = [
        [oracle.read(memory, np.asarray(q[b, t, h])) for t in range(T)]
        for b in range(B)
    ]
    np.testing.assert_allclose(o[:, :, h], expected, atol=1e-12)
  for name, memory in state.memories.items():
    for w, initial in zip(memory, params['memories'][name]):
      np.testing.assert_allclose(w, np.stack([initial] * B), atol=1e-12)


@functools.cache
def value_and_gradient(adaptive):
  weight = np.random.default_rng(3).normal(size=(B, 13, H, K))

  def loss(params, x):
    o, _, _ = titans.layer(
        params, x, options=options(adaptive=adaptive, read_residual='learned')
    )
    return jnp.sum(weight * o)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize(
    'kind,q',
    quick(
        [('matrix', 'adaptive'), ('mlp', 'static')], [('matrix', 'adaptive')]
    ),
)
def test_gradients_reach_everything_and_are_finite_differences(x64, kind, q):
  """If this fails, an initial state, gate or stream learns wrongly, or not."""
  params, x = dict(make_params(kind)), make_streams(13)
  params['memories'] = dict(params['memories'])
  adaptive = DEFAULT['adaptive']
  if q == 'adaptive':
    adaptive = ('q', *adaptive)
    del params['w_q']
  else:
    del params['memories']['q']
  f = value_and_gradient(adaptive)
  _, gradient = f(params, x)

  def check(path, g):
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 1e-6, path

  jax.tree.map_with_path(check, gradient)
  rng = np.random.default_rng(4)
  direction = jax.tree.map(lambda w: rng.normal(size=w.shape), (params, x))
  step = 1e-6

  def moved(by):
    at = jax.tree.map(lambda w, d: w + by * d, (params, x), direction)
    return f(*at)[0]

  slope = (moved(step) - moved(-step)) / (2 * step)
  expected = sum(
      np.sum(g * d)
      for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
  )
  np.testing.assert_allclose(slope, expected, rtol=1e-5)
  # Silence is no division by zero.
  _, gradient = f(params, jax.tree.map(lambda s: 0 * s, x))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_bf16_products_stay_close():
  """If this fails, the state or a gate is kept in bfloat16."""
  params, x = make_params('mlp'), make_streams()
  starts, _ = packing('documents')
  exact, state, _ = run_packed(params, x, starts)
  close, near, _ = run_packed(params, x, starts, precision='bf16')
  assert close.dtype == exact.dtype == jnp.float32

  def error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)

  assert error(close, exact) < 3e-2
  for a, b in zip(jax.tree.leaves(near), jax.tree.leaves(state)):
    assert a.dtype == b.dtype
    assert not np.any(b) or error(a, b) < 5e-2


def test_targets_are_bounded():
  """If this fails, an input can make a memory grow without limit."""
  big = 1e6 * np.random.default_rng(0).normal(size=(7, 5))
  lengths = np.linalg.norm(titans_tile.bound(big), axis=-1)
  assert lengths.max() < 1 + 1e-6  # one, rounded
  small = 1e-4 * big / 1e6
  np.testing.assert_allclose(titans_tile.bound(small), small, rtol=1e-6)


def test_reading_a_memory_is_the_oracles_read(x64):
  """If this fails, the layer and its oracle share a mistake in the memory."""
  rng = np.random.default_rng(0)
  for memory in (
      Matrix(rng.normal(size=(3, 3))),
      Matrix(rng.normal(size=(3, 1))),
      Mlp(rng.normal(size=(3, 5)), rng.normal(size=(5, 3))),
      Mlp(rng.normal(size=(3, 5)), rng.normal(size=(5, 1))),
  ):
    z = rng.normal(size=(4, 3))
    actual = memory_lib.read(memory, z)
    expected = [oracle.read(memory._asdict(), row) for row in z]
    np.testing.assert_allclose(actual, expected, atol=1e-13)


def saturated(sign):
  """Static keys, gates at their end: eta = 1 + alpha where the sign is +."""
  params = make_params('matrix')
  memories = {n: jax.tree.map(np.zeros_like, m) if n == 'eta' else m
              for n, m in params['memories'].items()}
  return {**params, 'memories': memories, 'bias_eta': np.full(H, sign * 50.0)}


SIGNED = dict(
    eigenvalues='signed', momentum=False, retention=False, adaptive=()
)


@pytest.mark.parametrize('chunk', [1, 4, 16])
def test_a_reflection_is_exact_in_any_chunk(x64, chunk):
  """If it fails, a chunk loses count of what turned over inside it."""
  params = saturated(+1)
  _, state, _ = run(
      params, make_streams(), **SIGNED, chunk=chunk, projection_chunk=chunk
  )
  w = state.memories['memory'].w
  k_memory, x = params['memories']['k'].w, make_streams().k
  z = x / np.sqrt((x**2).sum(-1, keepdims=True))
  k = z + np.einsum('bthk,hkj->bthj', z, k_memory)
  k = k / np.sqrt((k**2).sum(-1, keepdims=True))
  for b in range(B):
    for h in range(H):
      expected = params['memories']['memory'].w[h]
      for t in range(T):  # a product of Householder reflections
        expected = expected - 2 * np.outer(k[b, t, h], k[b, t, h] @ expected)
      np.testing.assert_allclose(w[b, h], expected, atol=1e-4)
      # Isometries: nothing was written, nothing was lost.
      np.testing.assert_allclose(
          np.linalg.norm(w[b, h]),
          np.linalg.norm(params['memories']['memory'].w[h]), atol=1e-4,
      )


def test_signed_memories_stay_bounded(x64):
  """If it fails, some token pushes a memory beyond what it may reach.

  |M_t| <= max(alpha |M_{t-1}| + 1, |M_{t-1}|, 1) in the spectral norm, at every
  token, for rates over the whole range.
  """
  params, x = make_params('matrix'), make_streams(length=60)
  alpha = 0.9
  memories = dict(params['memories'])
  memories['alpha'] = jax.tree.map(np.zeros_like, memories['alpha'])
  memories['eta'] = jax.tree.map(lambda w: 20 * w, memories['eta'])
  params = {
      **params, 'memories': memories,
      'bias_alpha': np.full(H, np.log(alpha / (1 - alpha))),
  }
  changes = dict(
      eigenvalues='signed', momentum=False, adaptive=(), chunk=1,
      projection_chunk=1,
  )
  step = compiled(**changes)
  state, writes = None, []
  before = np.linalg.norm(memories['memory'].w, ord=2, axis=(-2, -1))
  for t in range(60):
    token = cut(x, slice(None), slice(t, t + 1))
    _, state, found = step(params, token, state)
    after = np.linalg.norm(
        state.memories['memory'].w, ord=2, axis=(-2, -1)
    )
    limit = np.maximum(alpha * before + 1, np.maximum(before, 1))
    assert (after <= limit + 1e-9).all()
    before = after
    writes.append(float(found['max_write']))
  assert min(writes) < 1 and max(writes) > 1.7
  etas = np.linspace(0, 1.95, 50)
  written = etas * titans_tile.target_scale(etas, 0.95)
  kept = np.abs(0.95 - etas)
  assert (np.asarray(written) + kept <= 1 + 1e-6).all()
