"""The whole layer as one TPU kernel, interpreted, against float64.

Values against the token-serial oracle in NumPy; values and gradients against
the layer in XLA, in float64, which test_titans.py holds to that oracle.
"""

import functools

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as emulator
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import titans
from hope_jax.nested.memory import Matrix, Mlp
from tests.marks import quick
from tests.nested.titans_cases import plain
from tests.oracles import titans as oracle

B, T, H, K, F = 2, 40, 2, 64, 64
EMULATED = pltpu.InterpretParams(detect_races=True)
DEFAULT = dict(
    chunk=16, projection_chunk=16, objective='delta', target='bounded',
    read='causal', eta_max=1.0, eigenvalues='positive', projection_eta=0.1,
    retention=True, layers='all', momentum=True,
    adaptive=('k', 'v', 'eta', 'alpha'), aligned=False, precision='float32',
)
STARTS = np.zeros((B, T), bool)
STARTS[0, [0, 5, 22]] = STARTS[1, 17] = True
# Relative errors of outputs and states, and of gradients: those of the
# recurrence.
BOUNDS = {'float32': (5e-6, 2e-5), 'bf16': (1.5e-2, 3e-2)}


def _arguments(kind, *, rank=0, gates=False):
  """Exact in float32, as float64 NumPy."""
  rng = np.random.default_rng(0)
  make = lambda *s: rng.normal(size=s)

  def memory(width):
    if kind == 'matrix' or (rank and width == rank):
      return Matrix(0.1 * make(H, K, width))
    return Mlp(w_in=make(H, K, F), w_out=0.1 * make(H, F, width))

  wide = rank or K
  widths = dict(memory=K, k=wide, v=wide, q=wide, eta=1, alpha=1)
  params = {
      'memories': {n: memory(w) for n, w in widths.items()},
      'w_q': make(H, K, K) / K**0.5,
      'bias_eta': make(H),
      'bias_alpha': make(H) + 2,
      'w_mu': make(H, K),
      'bias_mu': make(H),
  }
  x = titans.Streams(*make(3, B, T, H, K))
  params['bases'] = {n: make(H, rank, K) / K**0.5 for n in 'kvq' if rank}
  params['read_share'] = make(H)
  of_input = titans.Gates(*make(3, B, T, H)) if gates else None
  arguments = params, x, of_input
  return jax.tree.map(
      lambda x: x.astype(np.float32).astype(np.float64), arguments
  )


def _layer(implementation, starts, interpret, changes):
  options = {**DEFAULT, **changes}
  for name in ('rank', 'gates'):  # of the arguments
    options.pop(name, None)
  options = titans.Options(**options, implementation=implementation)
  return functools.partial(
      titans.layer, options=options, starts=starts, interpret=interpret
  )


def _run(kind, implementation, starts, interpret, changes):
  layer = _layer(implementation, starts, interpret, changes)

  @jax.jit
  def run(params, x, gates):
    def f(params, x, gates):
      o, state, diagnostics = layer(params, x, gates=gates)
      return (o, state.memories, state.momentum), diagnostics

    out, pull, diagnostics = jax.vjp(f, params, x, gates, has_aux=True)
    return out, pull(jax.tree.map(jnp.cos, out)), diagnostics

  dtype = jnp.float64 if implementation == 'xla' else jnp.float32
  inputs = {n: changes[n] for n in ('rank', 'gates') if n in changes}
  arguments = jax.tree.map(
      lambda x: jnp.asarray(x, dtype), _arguments(kind, **inputs)
  )
  return jax.tree.map(np.asarray, run(*arguments))


def _compare(kind, starts=None, interpret=True, **changes):
  kernel = _run(kind, 'pallas_tpu', starts, interpret, changes)
  with jax.enable_x64(True):
    xla = _run(kind, 'xla', starts, False, changes | {'precision': 'float32'})
  value, gradient = BOUNDS[changes.get('precision', 'float32')]
  for what, actual, expected, bound in zip(
      ('value', 'gradient', 'diagnostics'), kernel, xla,
      (value, gradient, value),
  ):
    leaves = jax.tree.leaves(expected)
    whole = np.sqrt(sum(np.sum(np.square(x)) for x in leaves))

    def close(path, a, e):
      # A gradient that is tiny beside the others is held to their size.
      scale = max(np.linalg.norm(e), 1e-3 * whole)  # noqa: B023
      error = np.linalg.norm(a - e) / scale
      assert error <= bound, (what, path, error)  # noqa: B023

    jax.tree_util.tree_map_with_path(close, actual, expected)


SLOW_REST = dict(
    projection_chunk=32, objective='l2', target='raw', momentum=False,
    eta_max=0.05, read='boundary',
)


# What the carry keeps of the frozen copies is a part of the memories here.
LOW_RANK = dict(
    rank=2, target='value', values='length', gates=True, momentum=False,
    read='after', read_residual='learned',
)


FORMS = {
    'default': {}, 'slow_main': dict(chunk=32), 'slow_rest': SLOW_REST,
    'bf16': dict(precision='bf16'),
    'signed': dict(eigenvalues='signed', momentum=False), 'low_rank': LOW_RANK,
    'plain': dict(plain_heads=1, read='after'),
    'integer': dict(
        arithmetic='integer', plain_heads=1, eigenvalues='signed',
        momentum=False,
    ),
}


# Of a matrix what takes another way through the kernel; MLPs compile for long.
@pytest.mark.parametrize(
    'kind,changes',
    quick(
        [
            pytest.param(kind, changes, id=f'{kind}-{name}')
            for kind in ('matrix', 'mlp')
            for name, changes in FORMS.items()
        ],
        [
            'mlp-default', 'matrix-default', 'matrix-bf16', 'matrix-low_rank',
        ],
    ),
)
def test_the_kernel_is_the_layer(kind, changes):
  """If this fails, a TPU trains another model than a CPU."""
  _compare(kind, **changes)


@pytest.mark.parametrize('precision', ['float32', 'bf16'])
@pytest.mark.parametrize('kind', ['matrix', 'mlp'])
def test_the_kernel_is_the_oracles_layer(kind, precision):
  """If this fails, the kernel computes something else than the equations."""
  starts = jnp.asarray(STARTS)
  layer = _layer('pallas_tpu', starts, True, dict(precision=precision))
  params, x, _ = _arguments(kind)
  o, state, _ = jax.jit(layer)(
      *jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, x))
  )
  options = {
      n: x for n, x in DEFAULT.items() if n not in ('aligned', 'precision')
  }
  options['read_at'] = options.pop('read')
  expected, memories, _, momentum, _ = oracle.layer(
      plain(params), x, starts=STARTS, **options
  )
  bound, _ = BOUNDS[precision]

  def close(path, actual, expected):
    error = np.linalg.norm(np.asarray(actual, np.float64) - expected)
    assert error <= bound * np.linalg.norm(expected), path

  jax.tree_util.tree_map_with_path(
      close, (o, plain(state.memories), plain(state.momentum)),
      (expected, memories, momentum),
  )


@pytest.mark.parametrize(
    'changes',
    quick(
        [dict(), dict(chunk=32, adaptive=('q', 'v', 'alpha'), layers='none')],
        [dict()],
    ),
    ids=str,
)
def test_documents_restart_in_the_kernel(changes):
  """If this fails, memory leaks from one document into the next on a TPU."""
  _compare('matrix', starts=jnp.asarray(STARTS), **changes)


@pytest.mark.parametrize('kind', quick(['matrix', 'mlp'], ['matrix']))
def test_emulated_memory_holds_no_race_and_nothing_unset(kind):
  """If this fails, a real TPU would read what no step has written."""
  _compare(kind, interpret=EMULATED)
  assert not emulator.races.races_found


def test_the_kernel_is_chosen_or_refused():
  """If this fails, an explicit choice is silently replaced."""
  with pytest.raises(ValueError, match="'pallas_tpu' needs a TPU"):
    _run('matrix', 'pallas_tpu', None, False, {})
  with pytest.raises(ValueError, match='got tile=8'):
    _run('matrix', 'pallas_tpu', None, True, dict(chunk=8))
