"""`dgd_recurrence` against a token-serial oracle in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.kernels.dgd import implementations
from hope_jax.kernels.dgd.api import dgd_recurrence
from tests.kernels import cases
from tests.kernels.cases import BOUNDS, NAMES, REGIMES
from tests.oracles import recurrence as oracle

B, T, H, K, V = 2, 40, 2, 8, 5
READS = ('pre', 'post', 'chunk')
_check = cases.check


def _inputs(regime, length=T):
  return cases.inputs(regime, (B, length, H, K, V))


def _cotangents(length=T):
  return cases.cotangents((B, length, H, K, V))


def _segments(length=T):
  return cases.segments(length)


@functools.cache
def _expected(
    regime, read, tile, packed=False, length=T, erase=True, reset=False
):
  """Outputs, final state and gradients of the oracle, six or with reset 7."""
  args = _inputs(regime, length)
  do, ds = _cotangents(length)
  ids = _segments(length) if packed else None
  options = dict(read=read, tile=tile, segment_ids=ids, erase=erase)
  if reset:
    options['reset'] = cases.reset((B, length, H, K, V))
  return (
      *oracle.recurrence(*args, **options),
      *oracle.recurrence_gradient(*args, do, ds, **options),
  )


def _run(regime, *, dtype, read, tile, length=T, reset=False, **options):
  """Outputs, final state and gradients of the function under test."""
  args = _inputs(regime, length)
  if reset:
    args = *args, cases.reset((B, length, H, K, V))
  args = tuple(jnp.asarray(x, dtype) for x in args)
  do, ds = (jnp.asarray(x, dtype) for x in _cotangents(length))
  return _compiled(read, tile, tuple(options.items()))(args, do, ds)


@functools.cache
def _compiled(read, tile, options):
  options = dict(options)
  if options.pop('packed', False):
    options['segment_ids'] = jnp.asarray(_segments())

  @jax.jit
  def run(args, do, ds):
    def f(q, k, u, eta, log_alpha, state, *reset):
      return dgd_recurrence(
          q, k, u, eta, log_alpha, state, read=read, tile=tile,
          reset=reset[0] if reset else None, **options,
      )

    out, pull = jax.vjp(f, *args)
    return (*out, *pull((do, ds)))

  return run


def test_oracle_gradient_is_a_finite_difference():
  """If this fails, the adjoint that judges all gradients is itself wrong."""
  length, segments = 6, _segments(6)
  for read in READS:
    options = dict(read=read, tile=2, segment_ids=segments)
    args = [x.copy() for x in _inputs('plain', length)]
    do, ds = _cotangents(length)
    gradients = oracle.recurrence_gradient(*args, do, ds, **options)

    def loss():
      o, final = oracle.recurrence(*args, **options)  # noqa: B023
      return np.sum(o * do) + np.sum(final * ds)  # noqa: B023

    rng = np.random.default_rng(1)
    for name, x, g in zip(NAMES, args, gradients):
      for _ in range(4):
        at = tuple(rng.integers(0, n) for n in x.shape)
        kept, step = x[at], 1e-5
        x[at] = kept + step
        up = loss()
        x[at] = kept - step
        slope = (up - loss()) / (2 * step)
        x[at] = kept
        np.testing.assert_allclose(slope, g[at], atol=1e-7, err_msg=name)


@pytest.mark.parametrize('read', READS)
def test_reference_is_the_recurrence(x64, read):
  """If this fails, the implementation that others are held to is wrong."""
  for regime in REGIMES:
    for tile in (1, 16) if read == 'chunk' else (None,):
      actual = _run(
          regime, dtype='float64', read=read, tile=tile,
          implementation='reference',
      )
      _check(
          actual, _expected(regime, read, tile or 1), BOUNDS['float64'], regime
      )


@pytest.mark.parametrize(
    'read,tile',
    [
        *(('pre', tile) for tile in (1, 16, T, 64)),
        ('post', 16), ('chunk', 1), ('chunk', 16),
    ],
)
def test_chunks_are_the_recurrence_in_float64(x64, read, tile):
  """If this fails, the chunk form is not the recurrence, or pads wrongly."""
  for regime in REGIMES:
    actual = _run(
        regime, dtype='float64', read=read, tile=tile, implementation='xla'
    )
    relaxed = 5 if regime == 'reflect' else 1
    bounds = [relaxed * b for b in BOUNDS['float64']]
    _check(actual, _expected(regime, read, tile), bounds, regime)


@pytest.mark.parametrize(
    'read,tile',
    [
        ('pre', 64), ('chunk', 16),
        pytest.param('post', 16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_chunks_keep_their_accuracy(precision, read, tile):
  """If this fails, the fast path loses digits for some gates or keys."""
  for regime in REGIMES:
    actual = _run(
        regime, dtype='float32', read=read, tile=tile, precision=precision,
        implementation='xla',
    )
    relaxed = 5 if regime == 'reflect' else 1
    bounds = [relaxed * b for b in BOUNDS[precision]]
    _check(actual, _expected(regime, read, tile), bounds, regime)


def test_float32_holds_over_a_long_sequence():
  """If this fails, errors grow with the length of the text."""
  for regime in ('plain', 'keep', 'same_keys', 'mixed'):
    actual = _run(
        regime, dtype='float32', read='pre', tile=64, length=512,
        implementation='xla',
    )
    expected = _expected(regime, 'pre', 64, length=512)
    _check(actual, expected, BOUNDS['float32'], regime)


@pytest.mark.parametrize(
    'read,tile,implementation',
    [
        ('pre', 16, 'xla'), ('post', 4, 'xla'), ('chunk', 4, 'xla'),
        ('chunk', 4, 'reference'),
    ],
)
def test_segments_match_the_oracle(x64, read, tile, implementation):
  """If this fails, memory or a gradient leaks between packed documents."""
  for regime in ('plain', 'mixed', 'same_keys', 'forget'):
    actual = _run(
        regime, dtype='float64', read=read, tile=tile, packed=True,
        implementation=implementation,
    )
    expected = _expected(regime, read, tile, packed=True)
    _check(actual, expected, BOUNDS['float64'], regime)


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('read', READS)
def test_without_erasure_writes_only_add_up(x64, read, packed, implementation):
  """If this fails, linear attention and RetNet are other models."""
  for regime in ('plain', 'mixed', 'same_keys', 'long_keys'):
    actual = _run(
        regime, dtype='float64', read=read, tile=4, packed=packed, erase=False,
        implementation=implementation,
    )
    expected = _expected(regime, read, 4, packed=packed, erase=False)
    _check(actual, expected, BOUNDS['float64'], regime)


@pytest.mark.parametrize(
    'read,tile,implementation',
    [
        ('pre', 16, 'xla'), ('post', 4, 'xla'), ('chunk', 4, 'xla'),
        ('chunk', 4, 'reference'),
    ],
)
def test_segments_start_from_the_reset_state(x64, read, tile, implementation):
  """If this fails, a document starts from what the one before has left."""
  for regime in ('plain', 'mixed', 'forget'):
    actual = _run(
        regime, dtype='float64', read=read, tile=tile, packed=True, reset=True,
        implementation=implementation,
    )
    expected = _expected(regime, read, tile, packed=True, reset=True)
    assert len(actual) == len(expected) == 9
    _check(actual, expected, BOUNDS['float64'], regime)


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
def test_without_a_state_segments_start_from_zero(x64, implementation):
  """If this fails, the short way for a zero reset is another recurrence."""
  *streams, state = _inputs('plain')
  how = dict(
      read='post', tile=4, segment_ids=_segments(),
      implementation=implementation,
  )
  zero = jnp.zeros_like(state)
  for a, b in zip(
      dgd_recurrence(*streams, **how),
      dgd_recurrence(*streams, zero, reset=zero, **how),
  ):
    np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize('packed', [False, True])
def test_padding_writes_and_forgets_nothing(x64, packed):
  """If this fails, padding inside a row changes the tokens after it."""
  *streams, state = _inputs('mixed')
  present = np.random.default_rng(2).random(T) < 0.6
  ids = _segments() if packed else None
  q, k, u, eta, la = streams
  eta, la = (np.where(present[:, None], x, 0) for x in (eta, la))
  f = functools.partial(dgd_recurrence, tile=16)
  o, final = f(q, k, u, eta, la, state, segment_ids=ids)
  kept, last = f(
      *(x[:, present] for x in streams), state,
      segment_ids=ids[:, present] if packed else None,
  )
  np.testing.assert_allclose(o[:, present], kept, atol=1e-12)
  np.testing.assert_allclose(final, last, atol=1e-12)


def test_an_implementation_comes_from_outside(monkeypatch):
  """If this fails, a new kernel needs changes in the files of the others."""
  table = dict(implementations.IMPLEMENTATIONS)
  monkeypatch.setattr(implementations, 'IMPLEMENTATIONS', table)
  seen = []

  def run(q, k, u, eta, log_alpha, state, packed, *, tile, **options):
    seen.append(tile)
    return table['xla'].run(
        q, k, u, eta, log_alpha, state, packed, tile=tile, **options
    )

  def obstacle(problem):
    return 'takes keys of 8 only' if problem.key_dim != 8 else None

  toy = implementations.Implementation(
      run, lambda key_dim, length: 4, obstacle, platforms=('cpu',)
  )
  implementations.register('toy', toy)
  args = [jnp.asarray(x, jnp.float32) for x in _inputs('plain')]
  o, final = dgd_recurrence(*args)  # 'auto' on this platform
  expected = dgd_recurrence(*args, implementation='xla')
  np.testing.assert_allclose(o, expected[0], atol=1e-4)
  np.testing.assert_allclose(final, expected[1], atol=1e-4)
  assert seen == [4]
  q, k, *rest, state = args
  wider = [jnp.concatenate([x, x], axis=-1) for x in (q, k)]
  state = jnp.concatenate([state, state], axis=-2)
  with pytest.warns(UserWarning, match="stands in for 'toy', which takes keys"):
    dgd_recurrence(*wider, *rest, state)
  with pytest.raises(ValueError, match="implementation='toy' takes keys of 8"):
    dgd_recurrence(*wider, *rest, state, implementation='toy')
  with pytest.raises(ValueError, match="'toy' is already in the table"):
    implementations.register('toy', toy)
  assert seen == [4]


def test_segments_keep_float32_accuracy():
  """If this fails, the decay before a segment spoils the digits inside it."""
  for regime in ('plain', 'keep', 'mixed', 'forget'):
    actual = _run(
        regime, dtype='float32', read='pre', tile=64, packed=True,
        implementation='xla',
    )
    expected = _expected(regime, 'pre', 64, packed=True)
    _check(actual, expected, BOUNDS['float32'], regime)


@pytest.mark.parametrize('read', READS)
def test_segments_of_the_oracle_are_separate_sequences(read):
  """If this fails, packed rows are held to a wrong idea of a segment."""
  *streams, state = _inputs('plain')
  ids = _segments()
  o, final, *_ = _expected('plain', read, 4, packed=True)
  for b in range(B):
    cuts = [0, *(np.flatnonzero(np.diff(ids[b])) + 1), T]
    for start, stop in zip(cuts, cuts[1:]):
      at = np.s_[b : b + 1, start:stop]
      alone, last = oracle.recurrence(
          *(x[at] for x in streams), state[b : b + 1], read=read, tile=4
      )
      np.testing.assert_array_equal(o[at], alone)
    np.testing.assert_array_equal(final[b], last[0])


@pytest.mark.parametrize(
    'read,packed',
    [('pre', False), ('post', False), ('chunk', False), ('chunk', True)],
)
def test_the_future_does_not_reach_the_past(read, packed):
  """If this fails, training sees what it should predict. Bit for bit."""
  ids = jnp.asarray(_segments()) if packed else None
  f = jax.jit(
      lambda *a: dgd_recurrence(*a, read=read, tile=16, segment_ids=ids)[0]
  )
  args = [jnp.asarray(x, jnp.float32) for x in _inputs('plain')]
  before = f(*args)
  for t in (1, 15, 16, 17, T - 1):
    changed = [x.at[:, t].set(-2 * x[:, t]) for x in args[:4]]
    changed += [args[4].at[:, t].set(-3.0), args[5]]
    after = f(*changed)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any()


@pytest.mark.parametrize('length', [T // 2, 1])
def test_a_state_handed_over_continues_the_sequence(x64, length):
  """If this fails, a text fed in several calls is not the text."""
  *streams, state = _inputs('plain')
  expected, final, *_ = _expected('plain', 'pre', 1)
  feed = jax.jit(functools.partial(dgd_recurrence, read='pre', tile=16))
  outputs = []
  for start in range(0, T, length):
    o, state = feed(*(x[:, start : start + length] for x in streams), state)
    outputs.append(o)
  np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-12)
  np.testing.assert_allclose(state, final, atol=1e-12)


def test_no_state_is_a_zero_state_and_nothing_is_nothing():
  """If this fails, the default state or an empty call is mishandled."""
  *streams, state = [jnp.asarray(x, jnp.float32) for x in _inputs('plain')]
  streams = [x[:, :1] for x in streams]
  a = dgd_recurrence(*streams)
  b = dgd_recurrence(*streams, jnp.zeros_like(state))
  np.testing.assert_array_equal(a[0], b[0])
  np.testing.assert_array_equal(a[1], b[1])
  o, final = dgd_recurrence(*(x[:, :0] for x in streams), state)
  assert o.shape == (B, 0, H, V)
  np.testing.assert_array_equal(final, state)


@pytest.mark.parametrize(
    'implementation,packed',
    [('xla', False), ('xla', True), ('reference', True)],
)
def test_retention_zero_and_zero_keys_have_finite_gradients(
    implementation, packed
):
  """If this fails, one hard reset or empty key makes a training step NaN."""
  q, k, u, eta, la, state = _inputs('plain')
  la[:, ::4] = -np.inf
  k[:, ::5] = 0
  args = [jnp.asarray(x, jnp.float32) for x in (q, k, u, eta, la, state)]
  do, ds = (jnp.asarray(x, jnp.float32) for x in _cotangents())
  options = (('implementation', implementation),)
  options += (('packed', True),) if packed else ()
  run = _compiled('post', 4, options)
  for name, x in zip(('o', 'final', *NAMES), run(args, do, ds)):
    assert np.isfinite(x).all(), name
  # alpha = 0 forgets all that came before, up to e^-30.
  la[:], eta[:] = -np.inf, 0
  args[3:5] = (jnp.asarray(x, jnp.float32) for x in (eta, la))
  o, final, *_ = run(args, do, ds)
  starts = np.diff(_segments(), prepend=-1) != 0
  kept = starts if packed else np.zeros_like(starts)
  kept[:, 0] = True
  assert np.abs(o[~kept]).max() < 1e-11
  assert np.abs(final).max() < (1 if packed else 1e-11)


def test_a_hard_reset_leaves_the_decays_after_it_exact():
  """If this fails, alpha = 0 at one token spoils the digits of later ones.

  As a difference of cumulated logs, what follows a -30 would lose its digits.
  """
  values = list(_inputs('plain'))
  values[4][:, ::4] = -30
  do, ds = _cotangents()
  args = tuple(jnp.asarray(x, jnp.float32) for x in values)
  actual = _compiled('pre', 64, (('precision', 'float32'),
                                 ('implementation', 'xla')))(
      args, jnp.asarray(do, jnp.float32), jnp.asarray(ds, jnp.float32)
  )
  expected = (
      *oracle.recurrence(*values, read='pre'),
      *oracle.recurrence_gradient(*values, do, ds, read='pre'),
  )
  _check(actual, expected, BOUNDS['float32'], 'hard reset')


def test_outputs_have_the_dtypes_promised():
  """If this fails, a caller gets another dtype than documented."""
  def of(dtype, **options):
    args = [jax.ShapeDtypeStruct(x.shape, dtype) for x in _inputs('plain')]
    out = jax.eval_shape(
        functools.partial(dgd_recurrence, **options), *args
    )
    return tuple(str(x.dtype) for x in out)

  assert of('bfloat16', precision='bf16') == ('bfloat16', 'float32')
  for implementation in ('auto', 'xla', 'reference'):
    options = dict(implementation=implementation)
    assert of('float32', **options) == ('float32', 'float32')
    assert of('bfloat16', **options) == ('bfloat16', 'float32')
    with jax.enable_x64(True):
      assert of('float64', **options) == ('float64', 'float64')


def test_what_does_not_fit_is_named():
  """If this fails, a wrong shape or option ends in an error without a name."""
  args = dict(zip(NAMES, _inputs('plain')))
  streams = [args.pop(n) for n in ('q', 'k', 'u', 'eta', 'log_alpha')]
  state = args.pop('state')

  def call(index, value, **options):
    changed = [*streams, state]
    changed[index] = value
    return dgd_recurrence(*changed, **options)

  for index, name in enumerate(NAMES):
    right = [*streams, state][index]
    if name in ('k', 'u'):
      continue
    with pytest.raises(ValueError, match=f'{name} must have shape'):
      call(index, right[:, :1])
  with pytest.raises(ValueError, match='k must be'):
    call(1, streams[1][0])
  with pytest.raises(ValueError, match='u must have shape'):
    call(2, streams[2][0])
  with pytest.raises(ValueError, match='segment_ids must have shape'):
    dgd_recurrence(*streams, segment_ids=_segments()[:, :3])
  with pytest.raises(ValueError, match='reset must have shape'):
    dgd_recurrence(*streams, segment_ids=_segments(), reset=state[:1])
  for option in ('read', 'precision', 'implementation', 'save_states'):
    with pytest.raises(ValueError, match=f"{option} must be one of .*'wrong'"):
      dgd_recurrence(*streams, **{option: 'wrong'})
  with pytest.raises(ValueError, match='tile must be at least 1'):
    dgd_recurrence(*streams, tile=0)
  with pytest.raises(ValueError, match="'pallas_tpu' needs a TPU"):
    dgd_recurrence(*streams, implementation='pallas_tpu')
  with pytest.raises(ValueError, match='K must be in .* K=8, V=5'):
    dgd_recurrence(*streams, implementation='pallas_tpu', interpret=True)


def test_bf16_products_of_float64_are_refused(x64):
  """If this fails, float64 is asked for and silently rounded to bfloat16."""
  with pytest.raises(ValueError, match='float64'):
    dgd_recurrence(*_inputs('plain'), precision='bf16')
