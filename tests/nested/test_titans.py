"""The self-modifying layer against a token-serial oracle in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import dgd, titans, titans_tile
from hope_jax.nested import memory as memory_lib
from tests.oracles import titans as oracle

B, T, H, K, F = 2, 23, 2, 4, 6
# As the model has it by default, with chunks short enough for T tokens.
DEFAULT = dict(
    chunk=4, projection_chunk=4, objective='delta', target='bounded',
    read='causal', eta_max=1.0, eigenvalues='positive', projection_eta=0.1,
    retention=True,
    layers='all', momentum=True, adaptive=('k', 'v', 'eta', 'alpha'),
)
# Each differs from the default in what its name says.
VARIANTS = {
    'default': {},
    'no_momentum': dict(momentum=False),
    'l2': dict(objective='l2', eta_max=0.25),
    'l2_no_momentum': dict(objective='l2', eta_max=0.25, momentum=False),
    'boundary': dict(read='boundary'),
    'raw': dict(target='raw'),
    'value': dict(target='value'),
    'gradient_descent': dict(layers='none'),
    'gradient_descent_no_momentum': dict(layers='none', momentum=False),
    'input_layer': dict(layers='input'),
    'output_layer': dict(layers='output'),
    'no_retention': dict(retention=False, adaptive=('k', 'v', 'eta')),
    'adaptive_q': dict(adaptive=('q', 'k', 'v', 'eta', 'alpha')),
    'static_k': dict(adaptive=('v', 'eta', 'alpha')),
    'static_v': dict(adaptive=('k', 'eta', 'alpha')),
    'static_gates': dict(adaptive=('k', 'v')),
    'all_static': dict(adaptive=()),
    'slow_projections': dict(projection_chunk=8),
    'fast_projections': dict(chunk=8),
    'slow_boundary': dict(projection_chunk=8, read='boundary'),
    'signed': dict(eigenvalues='signed'),
    'signed_chunk_1': dict(
        eigenvalues='signed', momentum=False, chunk=1, projection_chunk=1
    ),
    'chunk_1': dict(chunk=1, projection_chunk=1),
    'after': dict(read='after'),
    'after_no_momentum': dict(read='after', momentum=False),
    'plain_head': dict(plain_heads=1),
    'plain_head_signed': dict(
        plain_heads=1, momentum=False, read='after', eigenvalues='signed'
    ),
    # What Titans itself and a TTT layer are, see models/blocks.py.
    'titans': dict(
        objective='l2', eta_max=0.25, target='value', layers='none',
        adaptive=(),
    ),
    'ttt': dict(
        objective='l2', eta_max=0.25, target='value', layers='none',
        adaptive=(), retention=False, momentum=False,
    ),
}


def options(**changes):
  return titans.Options(
      **{**DEFAULT, 'aligned': False, 'precision': 'float32', **changes}
  )


@functools.cache
def make_params(kind, seed=0):
  """Parameters far from where training starts, so that every term counts."""
  rng = np.random.default_rng(seed)

  def memory(width, hidden):
    if kind == 'matrix':
      return {'w': rng.normal(size=(H, K, width)) * 0.4}
    return {
        'w_in': rng.normal(size=(H, K, hidden)),
        'w_out': rng.normal(size=(H, hidden, width)) * 0.7,
    }

  widths = dict(memory=(K, F), k=(K, 5), v=(K, 5), q=(K, 5), eta=(1, 3),
                alpha=(1, 3))
  return {
      'memories': {n: memory(*w) for n, w in widths.items()},
      'w_q': rng.normal(size=(H, K, K)),
      'bias_eta': rng.normal(size=H),
      'bias_alpha': rng.normal(size=H) + 2,
      'w_mu': rng.normal(size=(H, K)),
      'bias_mu': rng.normal(size=H),
  }


@functools.cache
def make_streams(length=T, seed=1, batch=B):
  rng = np.random.default_rng(seed)
  return titans.Streams(*rng.normal(size=(3, batch, length, H, K)))


@functools.cache
def compiled(**changes):
  return jax.jit(functools.partial(titans.layer, options=options(**changes)))


def run(params, x, state=None, **changes):
  """The layer without compilation, most of the time of a test this small."""
  with jax.disable_jit():
    return titans.layer(params, x, state, options=options(**changes))


def run_packed(params, x, starts, present=None, **changes):
  """The compiled layer; one compilation for all ways to pack."""
  present = np.ones(starts.shape, bool) if present is None else present
  return compiled(**changes)(params, x, None, starts=starts, present=present)


def expect(params, x, *, starts=None, present=None, **changes):
  arguments = {**DEFAULT, **changes}
  arguments['read_at'] = arguments.pop('read')
  arguments.pop('aligned', None)
  return oracle.layer(params, x, starts=starts, present=present, **arguments)


def assert_state(state, expected, atol=1e-11):
  """Memories, frozen copies, momentum and phase."""
  names = ('memories', 'frozen', 'momentum')
  for name, e in zip(names, expected):
    if name == 'momentum' and state.momentum is None:
      continue
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, atol=atol, err_msg=f'{name}{path}'  # noqa: B023
        ),
        getattr(state, name), e,
    )
  np.testing.assert_array_equal(state.phase, expected[-1])


def forms():
  """Variants with either memory; what its form hardly changes is slow."""
  core = (
      'default', 'l2', 'gradient_descent', 'input_layer', 'output_layer',
      'adaptive_q', 'slow_boundary', 'titans',
  )
  for variant in VARIANTS:
    for kind in ('matrix', 'mlp'):
      slow = kind == 'mlp' and variant not in core
      yield pytest.param(
          variant, kind, marks=pytest.mark.slow if slow else ()
      )


@pytest.mark.parametrize('variant,kind', forms())
def test_layer_is_the_token_serial_layer(x64, variant, kind):
  """If this fails, the layer is not the equations in its docstring."""
  params, x = make_params(kind), make_streams()
  changes = VARIANTS[variant]
  o, state, diagnostics = run(params, x, **changes)
  expected, *expected_state = expect(params, x, **changes)
  np.testing.assert_allclose(o, expected, atol=1e-11)
  assert_state(state, expected_state)
  limit = 2 if 'signed' in variant else 1
  assert 0 < diagnostics['max_write'] < limit or 'l2' in variant
  assert diagnostics['mean_alpha'] <= 1
  assert diagnostics['least_eigenvalue'] >= 1 - limit or 'l2' in variant


def documents(rows, length=T):
  starts = np.zeros((len(rows), length), bool)
  for b, row in enumerate(rows):
    starts[b, list(row)] = True
  return starts


PACKINGS = {
    # Documents of one token, of many chunks, and a start at every phase.
    'documents': (documents(((0, 1, 2, 9, 14), (0, 5, 19))), None),
    'padding': (documents(((0,), (2,))), (np.r_[3:5, 20:T], np.r_[0:2, 9:15])),
    'both': (
        documents(((0, 6, 12), (1, 18))),
        (np.r_[4:6, 17:T], np.r_[0, 13:18]),
    ),
}


def packing(name):
  starts, holes = PACKINGS[name]
  present = np.ones((B, T), bool)
  for row, hole in zip(present, holes or ()):
    row[hole] = False
  return starts, present


@pytest.mark.parametrize('name', list(PACKINGS))
@pytest.mark.parametrize(
    'variant,kind',
    [
        ('default', 'mlp'),
        ('slow_boundary', 'matrix'),
        pytest.param('fast_projections', 'mlp', marks=pytest.mark.slow),
    ],
)
def test_packing_is_the_oracles(x64, variant, kind, name):
  """If this fails, a document sees its neighbour, or padding is written."""
  params, x = make_params(kind), make_streams()
  starts, present = packing(name)
  changes = VARIANTS[variant]
  o, state, _ = run_packed(params, x, starts, present, **changes)
  expected, *expected_state = expect(
      params, x, starts=starts, present=present, **changes
  )
  np.testing.assert_allclose(o, expected, atol=1e-11)
  assert_state(state, expected_state)
  # What stands in the padding does not matter, bit for bit.
  other = titans.Streams(
      *(np.where(present[:, :, None, None], s, 7.0) for s in x)
  )
  again, new, _ = run_packed(params, other, starts, present, **changes)
  np.testing.assert_array_equal(o, again)
  jax.tree.map(np.testing.assert_array_equal, state, new)


def test_padding_alone_changes_nothing(x64):
  """If this fails, padding moves the chunk grid where nothing is packed."""
  params, x = make_params('matrix'), make_streams()
  _, present = packing('padding')
  with jax.disable_jit():
    o, state, _ = titans.layer(params, x, options=options(), present=present)
  expected, *expected_state = expect(params, x, present=present)
  np.testing.assert_allclose(o, expected, atol=1e-11)
  assert_state(state, expected_state)


def test_the_oracle_packs_what_it_gives_alone():
  """If this fails, packed rows are held to a wrong idea of a document."""
  params, x = make_params('mlp'), make_streams()
  starts, _ = packing('documents')
  o, *_ = expect(params, x, starts=starts)
  for b in range(B):
    first = np.flatnonzero(starts[b])
    for start, stop in zip(first, (*first[1:], T)):
      piece = titans.Streams(*(s[b : b + 1, start:stop] for s in x))
      alone, *_ = expect(params, piece)
      np.testing.assert_array_equal(o[b : b + 1, start:stop], alone)


@pytest.mark.parametrize(
    'variant,kind', [('default', 'matrix'), ('slow_projections', 'matrix')]
)
def test_aligned_grid_is_the_same_where_it_may_be_used(x64, variant, kind):
  """If this fails, grid='aligned' is another model, not a faster one."""
  params, x = make_params(kind), make_streams()
  starts = documents(((0, 8, 12), (0, 4, 20)))
  present = np.ones((B, T), bool)
  present[0, 6:8] = present[0, 22:] = False
  present[1, 11:20] = False
  changes = VARIANTS[variant]
  o, state, _ = run_packed(
      params, x, starts, present, aligned=True, **changes
  )
  expected, *expected_state = expect(
      params, x, starts=starts, present=present, **changes
  )
  np.testing.assert_allclose(o[present], expected[present], atol=1e-11)
  assert_state(state, expected_state)


def test_what_a_grid_has_no_room_for_is_nan():
  """If this fails, documents off the grid give plausible, wrong numbers."""
  params, x = make_params('matrix'), make_streams()
  starts = documents(((0, 8), (0, 9)))
  o, _, _ = run_packed(params, x, starts, aligned=True)
  assert np.isfinite(o[0]).all()
  assert np.isnan(o[1]).all()
  # 64 documents of one token, where chunks are 4 tokens: more than 2 T / C + 8.
  starts = np.ones((B, 64), bool)
  starts[0, 1:] = False
  o, _, _ = run_packed(params, make_streams(64), starts)
  assert np.isfinite(o[0]).all()
  assert np.isnan(o[1]).all()


@pytest.mark.parametrize('piece', [1, 11])
@pytest.mark.parametrize(
    'variant,kind', [('default', 'mlp'), ('slow_boundary', 'matrix')]
)
def test_a_state_handed_over_continues_the_text(x64, variant, kind, piece):
  """If this fails, a text in pieces, or token by token, is not the text."""
  params, x = make_params(kind), make_streams(22)
  changes = VARIANTS[variant]
  expected, *expected_state = expect(params, x, **changes)
  state = titans.initial_state(params, B, options(**changes))
  outputs = []
  for start in range(0, 22, piece):
    part = titans.Streams(*(s[:, start : start + piece] for s in x))
    o, state, _ = compiled(**changes)(params, part, state)
    outputs.append(o)
  np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-11)
  assert_state(state, expected_state)


def test_a_cut_inside_packed_documents_continues_them(x64):
  """If this fails, a row of documents cannot be cut where a batch ends."""
  params, x = make_params('matrix'), make_streams(22)
  starts = packing('documents')[0][:, :22]
  changes = VARIANTS['slow_projections']
  expected, *expected_state = expect(params, x, starts=starts, **changes)
  state = titans.initial_state(params, B, options(**changes))
  outputs = []
  for at in (np.s_[:, :11], np.s_[:, 11:]):
    part = titans.Streams(*(s[at] for s in x))
    o, state, _ = compiled(**changes)(params, part, state, starts=starts[at])
    outputs.append(o)
  np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-11)
  assert_state(state, expected_state)


@pytest.mark.parametrize(
    'read,kind', [('causal', 'mlp'), ('boundary', 'matrix')]
)
def test_the_future_does_not_reach_the_past(read, kind):
  """If this fails, the layer sees what it should predict. Bit for bit."""
  params, x = make_params(kind), make_streams()
  starts, _ = packing('documents')
  before, _, _ = run_packed(params, x, starts, read=read)
  for t in (1, 4, 11, T - 1):
    changed = titans.Streams(*(s.copy() for s in x))
    for s in changed:
      s[:, t] = -3 * s[:, t] + 1
    after, _, _ = run_packed(params, changed, starts, read=read)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any()
  # Nor does the layout of later documents.
  later = documents(((0, 1, 2, 9, 16, 21), (0, 5, 20)))
  after, _, _ = run_packed(params, x, later, read=read)
  np.testing.assert_array_equal(before[0, :14], after[0, :14])
  np.testing.assert_array_equal(before[1, :19], after[1, :19])


def test_rows_and_heads_are_independent():
  """If this fails, one text changes the memory of another."""
  params, x = make_params('mlp'), make_streams()
  starts, _ = packing('documents')
  before, state, _ = run_packed(params, x, starts)
  changed = titans.Streams(*(s.copy() for s in x))
  for s in changed:
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
    memory = jax.tree.map(lambda w: w[h], params['memories'][titans.MAIN])  # noqa: B023
    expected = [
        [oracle.read(memory, np.asarray(q[b, t, h])) for t in range(T)]
        for b in range(B)
    ]
    np.testing.assert_allclose(o[:, :, h], expected, atol=1e-12)
  for name, memory in state.memories.items():
    for layer, w in memory.items():
      initial = params['memories'][name][layer]
      np.testing.assert_allclose(w, np.stack([initial] * B), atol=1e-12)


@functools.cache
def value_and_gradient(adaptive):
  weight = np.random.default_rng(3).normal(size=(B, 13, H, K))

  def loss(params, x):
    o, _, _ = titans.layer(params, x, options=options(adaptive=adaptive))
    return jnp.sum(weight * o)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize('kind,q', [('matrix', 'adaptive'), ('mlp', 'static')])
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
  _, gradient = f(params, titans.Streams(*(0 * s for s in x)))
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
      {'w': rng.normal(size=(3, 3))},
      {'w': rng.normal(size=(3, 1))},
      {'w_in': rng.normal(size=(3, 5)), 'w_out': rng.normal(size=(5, 3))},
      {'w_in': rng.normal(size=(3, 5)), 'w_out': rng.normal(size=(5, 1))},
  ):
    z = rng.normal(size=(4, 3))
    actual = memory_lib.read(memory, z)
    expected = [oracle.read(memory, row) for row in z]
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
  w = state.memories['memory']['w']
  k_memory, x = params['memories']['k']['w'], make_streams().k
  z = x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)
  k = z + np.einsum('bthk,hkj->bthj', z, k_memory)
  k = k / np.sqrt((k**2).sum(-1, keepdims=True) + 1e-6)
  for b in range(B):
    for h in range(H):
      expected = params['memories']['memory']['w'][h]
      for t in range(T):  # a product of Householder reflections
        expected = expected - 2 * np.outer(k[b, t, h], k[b, t, h] @ expected)
      np.testing.assert_allclose(w[b, h], expected, atol=1e-4)
      # Isometries: nothing was written, nothing was lost.
      np.testing.assert_allclose(
          np.linalg.norm(w[b, h]),
          np.linalg.norm(params['memories']['memory']['w'][h]), atol=1e-4,
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
  before = np.linalg.norm(memories['memory']['w'], ord=2, axis=(-2, -1))
  for t in range(60):
    token = titans.Streams(*(s[:, t : t + 1] for s in x))
    _, state, found = step(params, token, state)
    after = np.linalg.norm(
        state.memories['memory']['w'], ord=2, axis=(-2, -1)
    )
    limit = np.maximum(alpha * before + 1, np.maximum(before, 1))
    assert (after <= limit + 1e-9).all()
    before = after
    writes.append(float(found['max_write']))
  assert min(writes) < 1 and max(writes) > 1.7
  etas = np.linspace(0, 1.95, 50)
  written = etas * titans_tile.room(etas, 0.95)
  kept = np.abs(0.95 - etas)
  assert (np.asarray(written) + kept <= 1 + 1e-6).all()
