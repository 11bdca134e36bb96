"""Cases of the self-modifying layer, and its token-serial oracle in NumPy."""

import functools

import jax
import numpy as np

from hope_jax.nested import titans
from hope_jax.nested.memory import Matrix, Mlp
from tests.oracles import titans as oracle

B, T, H, K, F = 2, 23, 2, 4, 6
# As the model has it by default, with chunks short enough for T tokens.
DEFAULT = dict(
    chunk=4, projection_chunk=4, objective='delta', target='bounded',
    read='causal', eta_max=1.0, eigenvalues='positive', projection_eta=0.1,
    retention=True,
    layers='all', momentum=True, adaptive=('k', 'v', 'eta', 'alpha'),
)
# Each differs from the default in what its name says. 'rank' is that of the
# projections' memories, 'gates' whether the layer's input adds to the gates.
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
    'no_residual': dict(read_residual='none'),
    'learned_residual': dict(read_residual='learned', read='after'),
    'boundary_no_residual': dict(read_residual='none', read='boundary'),
    'length': dict(target='value', values='length', momentum=False),
    'length_slow': dict(target='value', values='length', projection_chunk=8),
    'layer_gates': dict(gates=True),
    'low_rank': dict(rank=2),
    'low_rank_length': dict(
        rank=1, target='value', values='length', gates=True, momentum=False,
        read='after', read_residual='none',
        adaptive=('q', 'k', 'v', 'eta', 'alpha'),
    ),
    'low_rank_l2': dict(rank=2, objective='l2', eta_max=0.25, target='raw'),
    'low_rank_signed': dict(rank=3, eigenvalues='signed', momentum=False),
    # Clears, adds, sets and turns over; a memory that adapts is rounded too.
    'integer': dict(
        arithmetic='integer', plain_heads=1, momentum=False, read='after',
        eigenvalues='signed', target='value', adaptive=('v',),
    ),
    'integer_positive': dict(arithmetic='integer', momentum=False),
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
def make_params(kind, seed=0, *, rank=0):
  """Parameters far from where training starts, so that every term counts."""
  rng = np.random.default_rng(seed)

  def memory(width, hidden):
    if kind == 'matrix' or (rank and width == rank):
      return Matrix(rng.normal(size=(H, K, width)) * 0.4)
    return Mlp(
        w_in=rng.normal(size=(H, K, hidden)),
        w_out=rng.normal(size=(H, hidden, width)) * 0.7,
    )

  wide = rank or K
  widths = dict(memory=(K, F), k=(wide, 5), v=(wide, 5), q=(wide, 5),
                eta=(1, 3), alpha=(1, 3))
  bases = {}
  if rank:
    bases = {n: rng.normal(size=(H, rank, K)) for n in ('k', 'v', 'q')}
  return {
      'memories': {n: memory(*w) for n, w in widths.items()},
      'bases': bases,
      'read_share': rng.normal(size=H),
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
def make_gates(length=T, seed=5):
  rng = np.random.default_rng(seed)
  return titans.Gates(*rng.normal(size=(3, B, length, H)))


def cut(x, *index):
  """The same index into every stream."""
  return jax.tree.map(lambda s: s[index], x)


def inputs(kind, variant, length=T):
  """Parameters, streams, gates or None, and options of a variant."""
  changes = dict(VARIANTS[variant])
  return (
      make_params(kind, rank=changes.pop('rank', 0)),
      make_streams(length),
      make_gates(length) if changes.pop('gates', False) else None,
      changes,
  )


@functools.cache
def compiled(**changes):
  return jax.jit(functools.partial(titans.layer, options=options(**changes)))


def run(params, x, state=None, gates=None, **changes):
  """The layer without compilation, most of the time of a test this small."""
  with jax.disable_jit():
    return titans.layer(
        params, x, state, options=options(**changes), gates=gates
    )


def run_packed(params, x, starts, present=None, gates=None, **changes):
  """The compiled layer; one compilation for all ways to pack."""
  present = np.ones(starts.shape, bool) if present is None else present
  return compiled(**changes)(
      params, x, None, starts=starts, present=present, gates=gates
  )


def expect(params, x, *, starts=None, present=None, gates=None, **changes):
  arguments = {**DEFAULT, **changes}
  arguments['read_at'] = arguments.pop('read')
  arguments.pop('aligned', None)
  return oracle.layer(
      plain(params), x, starts=starts, present=present, gates=gates, **arguments
  )


def plain(tree):
  """Memories as the oracle has them, dicts of their layers."""
  if isinstance(tree, Matrix | Mlp):
    return tree._asdict()
  return {name: plain(x) for name, x in tree.items()} if isinstance(
      tree, dict
  ) else tree


def assert_state(state, expected, atol=1e-11):
  """Memories, frozen copies, momentum and phase."""
  names = ('memories', 'frozen', 'momentum')
  for name, e in zip(names, expected):
    if name == 'momentum' and state.momentum is None:
      continue
    actual = plain(getattr(state, name))
    if name == 'frozen':  # only what outlives a tile
      e = {n: e[n] for n in actual}
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, atol=atol, err_msg=f'{name}{path}'  # noqa: B023
        ),
        actual, e,
    )
  np.testing.assert_array_equal(state.phase, expected[-1])


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
