"""The TPU kernel, interpreted, against the token-serial oracle in float64.

`interpret=True` runs the kernel's body as XLA; `InterpretParams` emulates the
memory of a TPU: buffers start as NaN, and accesses that race are found.
"""

import functools

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as emulator
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.kernels.dgd.api import dgd_recurrence, dgd_step
from tests.kernels import cases
from tests.kernels.cases import BOUNDS, REGIMES
from tests.marks import quick
from tests.oracles import recurrence as oracle

# Narrow keys go through HBM head by head, wide values lie along lanes.
SHAPE = B, T, H, K, V = 2, 40, 2, 64, 128
EMULATED = pltpu.InterpretParams(detect_races=True)


@functools.cache
def _expected(regime, read, tile, packed, shape, erase=True, reset=False):
  """Outputs, final state and gradients of the oracle, six or with reset 7."""
  args = cases.inputs(regime, shape)
  ids = cases.segments(shape[1]) if packed else None
  options = dict(read=read, tile=tile, segment_ids=ids, erase=erase)
  if reset:
    options['reset'] = cases.reset(shape)
  gradients = oracle.recurrence_gradient(
      *args, *cases.cotangents(shape), **options
  )
  return *oracle.recurrence(*args, **options), *gradients


@functools.cache
def _compiled(packed, shape, options):
  options = dict(options)
  if packed:
    options['segment_ids'] = jnp.asarray(cases.segments(shape[1]))

  @jax.jit
  def run(args, cotangents):
    def f(q, k, u, eta, log_alpha, state, *reset):
      return dgd_recurrence(
          q, k, u, eta, log_alpha, state, implementation='pallas_tpu',
          reset=reset[0] if reset else None, **options,
      )

    out, pull = jax.vjp(f, *args)
    return *out, *pull(cotangents)

  return run


def _float32(arrays):
  return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def _check(
    regimes, *, read='pre', tile=16, packed=False, precision='float32',
    shape=SHAPE, interpret=True, erase=True, reset=False, **options,
):
  options.update(
      read=read, tile=tile, precision=precision, interpret=interpret,
      erase=erase,
  )
  run = _compiled(packed, shape, tuple(options.items()))
  for regime in regimes:
    args = *cases.inputs(regime, shape), *([cases.reset(shape)] * reset)
    actual = run(_float32(args), _float32(cases.cotangents(shape)))
    expected = _expected(regime, read, tile, packed, shape, erase, reset)
    relaxed = 5 if regime == 'reflect' else 1
    bounds = [relaxed * b for b in BOUNDS[precision]]
    cases.check(actual, expected, bounds, f'{regime} {options}')


@pytest.mark.parametrize(
    'read,tile,packed,precision',
    quick(
        [
            (*form, precision)
            for form in [
                ('pre', 16, False), ('pre', 64, False), ('post', 48, False),
                ('chunk', 16, False), ('pre', 16, True), ('post', 16, True),
                ('chunk', 16, True),
            ]
            for precision in ('float32', 'bf16')
        ],
        [
            ('pre', 16, False, 'float32'), ('pre', 64, False, 'bf16'),
            ('post', 48, False, 'float32'), ('chunk', 16, False, 'bf16'),
            ('pre', 16, True, 'float32'), ('post', 16, True, 'bf16'),
            ('chunk', 16, True, 'float32'),
        ],
    ),
)
def test_the_kernel_is_the_recurrence(read, tile, packed, precision):
  """If this fails, the kernel computes something else than its name says."""
  _check(REGIMES, read=read, tile=tile, packed=packed, precision=precision)


@pytest.mark.parametrize(
    'options',
    [
        dict(read='post', erase=False),
        dict(read='post', erase=False, packed=True, precision='bf16'),
        dict(read='chunk', erase=False, packed=True),
        dict(read='post', packed=True, reset=True),
        dict(read='chunk', packed=True, reset=True, precision='bf16'),
        # Linear attention: a column of its normaliser beside the values.
        dict(read='post', erase=False, shape=(2, 40, 2, 64, 65)),
        dict(read='post', packed=True, reset=True, shape=(2, 40, 1, 128, 129)),
    ],
    ids=str,
)
def test_the_kernel_is_what_linear_memories_ask_for(options):
  """If this fails, a TPU trains other linear memories than a CPU."""
  _check(('plain', 'mixed', 'same_keys'), **options)


def test_a_zero_reset_is_no_parameter():
  """If this fails, the short way for a zero reset is another recurrence."""
  *streams, state = _float32(cases.inputs('plain', SHAPE))
  how = dict(
      read='post', tile=16, segment_ids=jnp.asarray(cases.segments(T)),
      implementation='pallas_tpu', interpret=True,
  )
  zero = jnp.zeros_like(state)
  for a, b in zip(
      dgd_recurrence(*streams, **how),
      dgd_recurrence(*streams, zero, reset=zero, **how),
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('packed', quick([False, True], [True]))
def test_recomputed_states_are_the_saved_ones(packed):
  """If this fails, the backward pass starts from other states than the forward.

  Bit for bit: the same function on the same tiles.
  """
  args = _float32(cases.inputs('mixed', SHAPE))
  cotangents = _float32(cases.cotangents(SHAPE))
  results = [
      _compiled(
          packed, SHAPE,
          (('tile', 16), ('interpret', True), ('save_states', save_states)),
      )(args, cotangents)
      for save_states in ('hbm', 'recompute')
  ]
  for a, b in zip(*results):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'options',
    quick(
        [
            dict(save_states='hbm'), dict(save_states='recompute'),
            dict(read='chunk', packed=True), dict(precision='bf16'),
        ],
        [dict(save_states='recompute'), dict(read='chunk', packed=True)],
    ),
    ids=str,
)
def test_emulated_memory_holds_no_race_and_nothing_unset(options):
  """If this fails, a real TPU would read what no step has written."""
  _check(('plain', 'mixed', 'same_keys'), interpret=EMULATED, **options)
  assert not emulator.races.races_found


@pytest.mark.parametrize(
    'shape,tile',
    [((1, 1, 1, 128, 64), 16), ((2, 33, 5, 64, 64), 32),
     ((1, 20, 1, 256, 128), 16), ((1, 20, 1, 128, 256), 16)],
)
def test_other_lengths_and_widths(shape, tile):
  """If this fails, a width, one token or an odd number of heads goes wrong."""
  _check(('plain', 'mixed'), shape=shape, tile=tile)


@pytest.mark.slow  # The kernel is emulated over 2,048 tokens.
@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_errors_do_not_grow_with_the_text(precision):
  """If this fails, the kernel is only good for short sequences."""
  _check(
      ('plain', 'keep', 'same_keys', 'mixed'), tile=128, precision=precision,
      shape=(1, 2048, 1, 64, 64),
  )


@pytest.mark.parametrize('read,packed', [('pre', False), ('chunk', True)])
def test_the_future_does_not_reach_the_past(read, packed):
  """If this fails, training sees what it should predict. Bit for bit."""
  ids = jnp.asarray(cases.segments(T)) if packed else None
  f = jax.jit(
      lambda *a: dgd_recurrence(
          *a, read=read, tile=16, segment_ids=ids, interpret=True,
          implementation='pallas_tpu',
      )[0]
  )
  args = _float32(cases.inputs('plain', SHAPE))
  at = 20
  changed = [x.at[:, at:].add(1.0) for x in args[:5]]
  changed[4] = args[4].at[:, at:].add(-1.0)
  # The token's own query and, before the write, nothing else of it is read.
  changed[0] = args[0].at[:, at + 1 :].add(1.0)
  before, after = f(*args), f(*changed, args[5])
  np.testing.assert_array_equal(before[:, : at + 1], after[:, : at + 1])
  assert not np.array_equal(before[:, at + 1 :], after[:, at + 1 :])


def test_a_text_cut_in_two_is_the_text():
  """If this fails, a state handed over is not the state that was left."""
  *streams, state = _float32(cases.inputs('mixed', SHAPE))
  f = functools.partial(
      dgd_recurrence, tile=16, implementation='pallas_tpu', interpret=True
  )
  whole, final = f(*streams, state)
  first, middle = f(*(x[:, :16] for x in streams), state)
  second, last = f(*(x[:, 16:] for x in streams), middle)
  np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, 1e-6)
  np.testing.assert_allclose(last, final, atol=1e-6)


@pytest.mark.parametrize('read', ['pre', 'post'])
def test_decoding_goes_on_where_the_kernel_stopped(read):
  """If this fails, a prompt read by the kernel is continued differently."""
  args = _float32(cases.inputs('mixed', SHAPE))
  *streams, state = args
  expected, final, *_ = _expected('mixed', read, 16, False, SHAPE)
  _, state = dgd_recurrence(
      *(x[:, :32] for x in streams), state, read=read, tile=16,
      implementation='pallas_tpu', interpret=True,
  )
  step = jax.jit(functools.partial(dgd_step, read=read))
  outputs = []
  for t in range(32, T):
    o, state = step(*(x[:, t] for x in streams), state)
    outputs.append(o)
  error = np.linalg.norm(np.stack(outputs, 1) - expected[:, 32:])
  assert error <= BOUNDS['float32'][0] * np.linalg.norm(expected[:, 32:])
  assert np.linalg.norm(state - final) <= 5e-6 * np.linalg.norm(final)


def test_what_cannot_run_says_why():
  """If this fails, an explicit choice is silently replaced, or unexplained."""
  args = _float32(cases.inputs('plain', SHAPE))
  run = functools.partial(dgd_recurrence, implementation='pallas_tpu')
  with pytest.raises(ValueError, match='needs a TPU and this is'):
    run(*args)
  with pytest.raises(ValueError, match='multiple of 16.* got tile=8'):
    run(*args, tile=8, interpret=True)
  with pytest.warns(UserWarning, match="stands in for 'pallas_tpu'"):
    dgd_recurrence(*args, tile=8, interpret=True)
  with pytest.raises(ValueError, match='read must be one of'):
    dgd_step(*(x[:, 0] for x in args[:5]), args[5], read='chunk')
