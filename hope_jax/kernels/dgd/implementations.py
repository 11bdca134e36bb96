"""The table of implementations of the recurrence, and how one is chosen.

A new one is a folder and an entry: `register(name, Implementation(...))`. Its
`scan`, where it has one, runs the self-modifying layer too.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
import warnings

import jax

from hope_jax.kernels.dgd import chunked, reference, segments
from hope_jax.kernels.dgd.devices import device
from hope_jax.kernels.dgd.layer import Layer
from hope_jax.kernels.dgd.reference import Packed
from hope_jax.kernels.dgd.tpu import layer as tpu_layer
from hope_jax.kernels.dgd.tpu import planning
from hope_jax.kernels.dgd.tpu import recurrence as tpu
from hope_jax.types import Array, PyTree, UnsupportedError

# (q, k, u, eta, log_alpha, state, packed, *, read, tile, erase, precision,
# save_states, interpret) -> (o, states), arguments as `api.dgd_recurrence` has
# validated them, on one device. o is in u's dtype; states are the last one and,
# where read is 'chunk' and rows are packed, the one at the last chunk start.
Run = Callable[..., tuple[Array, tuple[Array, ...]]]
# (step, params, carry, xs, marks, *, layer, partition) -> (carry, ys): scans
# `step` over the tiles of a self-modifying layer, differentiable in params,
# carry and xs. Trees of arrays: params [B or 1, H, ., .], carry [B, H, ., .],
# xs [B, N C, H, K] and marks [B, N C, H], C = layer.tile; ys are [B, N C, H, K]
# and [B, N C, H]. step(params, carry, xs, marks) -> (carry, ys) is pure and
# takes one tile: [., H, ., .], [B, H, C, K] and [B, H, C], or one axis R for B
# and H. partition: how the mesh that is set splits batch and heads; None: not.
RunScan = Callable[..., tuple[PyTree, PyTree]]


class Problem(NamedTuple):
  """What an implementation is asked whether it can run."""

  key_dim: int  # K
  value_dim: int  # V
  tile: int
  dtype: Any  # of the state
  interpret: Any


class Scan(NamedTuple):
  """How an implementation runs a self-modifying layer, `nested.titans`."""

  run: RunScan
  # Why it cannot run a layer, in one line; None: it can.
  obstacle: Callable[[Layer], str | None] = lambda layer: None


class Implementation(NamedTuple):
  """One way to run the recurrence."""

  run: Run
  tile: Callable[[int, int], int]  # (K, T) -> the fastest tile, in tokens
  # Why it cannot run a problem, in one line; None: it can.
  obstacle: Callable[[Problem], str | None] = lambda problem: None
  # Platforms where 'auto' takes it, if nothing is in its way, for calls of at
  # least so many tokens. Elsewhere 'auto' takes 'xla'.
  platforms: tuple[str, ...] = ()
  least_tokens: int = 1
  # None: it runs the recurrence alone. A self-modifying layer is then XLA's, or
  # refused where the implementation was named.
  scan: Scan | None = None


def _xla_tile(key_dim: int, length: int) -> int:
  """Measured best on a CPU; of a GPU, see the README."""
  best = 64
  if jax.default_backend() == 'cpu':
    best = 16 if key_dim <= 64 else 32
  return min(best, length)


def _xla(
    q, k, u, eta, log_alpha, state, packed: Packed | None, *, read, tile, erase,
    precision, **of_kernels
):
  del of_kernels
  q, k, values = (x.astype(state.dtype) for x in (q, k, u))
  args = q, k, values, eta, log_alpha, state
  how = dict(read=read, tile=tile, erase=erase, precision=precision)
  if packed is None:
    o, state = chunked.chunk_scan(*args, **how)
    return o.astype(u.dtype), (state,)
  o, states = segments.segment_scan(*args, packed, **how)
  return o.astype(u.dtype), states[: 2 if read == 'chunk' else 1]


def _reference(
    q, k, u, eta, log_alpha, state, packed: Packed | None, *, read, tile, erase,
    **of_others
):
  del of_others
  o, states = reference.recurrence(
      q, k, u, eta, log_alpha, state, read=read, tile=tile, erase=erase,
      packed=packed,
  )
  count = 2 if read == 'chunk' and packed is not None else 1
  return o.astype(u.dtype), states[:count]


IMPLEMENTATIONS: dict[str, Implementation] = {
    'reference': Implementation(_reference, _xla_tile),
    'xla': Implementation(_xla, _xla_tile),
    'pallas_tpu': Implementation(
        tpu.recurrence, tpu.default_tile,
        lambda problem: planning.obstacle(*problem), ('tpu',),
        # Fewer, as in decoding, are no tile.
        least_tokens=planning.TILES.start,
        scan=Scan(tpu_layer.scan, tpu_layer.obstacle),
    ),
}


def register(name: str, implementation: Implementation) -> None:
  """Adds an implementation, from here on a value of `implementation`.

  Args:
    name: not one of the table, and not 'auto'.
    implementation: the entry; where it names a platform that another names too,
      'auto' asks the later one first.

  Raises:
    ValueError: the name is taken.
  """
  if name == 'auto' or name in IMPLEMENTATIONS:
    raise ValueError(f'implementation {name!r} is already in the table')
  IMPLEMENTATIONS[name] = implementation


def require_known(name: str) -> None:
  """Raises an UnsupportedError where `name` is neither 'auto' nor an entry."""
  known = ('auto', *IMPLEMENTATIONS)
  if name not in known:
    raise UnsupportedError(
        f'implementation must be one of {known}; got {name!r}'
    )


def choose(
    name: str,
    problem: Callable[[int], Problem],
    *,
    tile: int | None,
    length: int,
    stacklevel: int = 3,
) -> tuple[Implementation, int]:
  """The implementation that will run, and its tile.

  Args:
    name: of the table, or 'auto'.
    problem: tile -> the problem.
    tile: tokens a tile; None: the implementation's own.
    length: T.
    stacklevel: of the warning that 'xla' stands in for what 'auto' prefers.

  Raises:
    UnsupportedError: the implementation that was named is not there, or
      cannot run this.
  """
  require_known(name)

  def tile_of(entry):
    key_dim = problem(1).key_dim
    return entry.tile(key_dim, length) if tile is None else tile

  if name != 'auto':
    entry = IMPLEMENTATIONS[name]
    obstacle = entry.obstacle(problem(tile_of(entry)))
    if obstacle is not None:
      raise UnsupportedError(f'implementation={name!r} {obstacle}')
    return entry, tile_of(entry)
  for name, entry in _of_platform(problem(1).interpret):
    if length < entry.least_tokens:
      continue
    obstacle = entry.obstacle(problem(tile_of(entry)))
    if obstacle is None:
      return entry, tile_of(entry)
    _warn(name, obstacle, stacklevel)
  entry = IMPLEMENTATIONS['xla']
  return entry, tile_of(entry)


def choose_scan(
    name: str, layer: Layer, *, length: int, stacklevel: int = 3
) -> RunScan | None:
  """What will run a self-modifying layer; None: XLA's scan, the caller's own.

  Args:
    name: of the table, or 'auto'.
    layer: its sizes.
    length: T; fewer tokens than a tile, as in decoding, are always XLA's.
    stacklevel: as for `choose`.

  Raises:
    UnsupportedError: the implementation that was named is not there, runs no
      such layer, or cannot run this one.
  """
  require_known(name)
  if name not in ('auto', 'xla'):
    scan = IMPLEMENTATIONS[name].scan
    if scan is None:
      able = [n for n, entry in IMPLEMENTATIONS.items() if entry.scan]
      raise UnsupportedError(
          f'implementation={name!r} runs no self-modifying layer; one of'
          f' {("auto", "xla", *able)} does'
      )
    if length < layer.tile:
      return None
    obstacle = scan.obstacle(layer)
    if obstacle is not None:
      raise UnsupportedError(f'implementation={name!r} {obstacle}')
    return scan.run
  if name == 'xla' or length < layer.tile:
    return None
  for name, entry in _of_platform(layer.interpret):
    if entry.scan is None:
      continue
    obstacle = entry.scan.obstacle(layer)
    if obstacle is None:
      return entry.scan.run
    _warn(name, obstacle, stacklevel)
  return None


def _of_platform(interpret: Any) -> Iterator[tuple[str, Implementation]]:
  """What 'auto' asks in turn; an interpreted kernel is one of a TPU."""
  platform = 'tpu' if interpret else device()[0]
  for name, entry in reversed(IMPLEMENTATIONS.items()):
    if platform in entry.platforms:
      yield name, entry


def _warn(name: str, obstacle: str, stacklevel: int) -> None:
  warnings.warn(
      f'the XLA form stands in for {name!r}, which {obstacle}',
      stacklevel=stacklevel + 1,
  )
