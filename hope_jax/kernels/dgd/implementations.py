"""The table of implementations of the recurrence, and how one is chosen.

A new one is a folder and an entry: `register(name, Implementation(...))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
import warnings

import jax

from hope_jax.kernels.dgd import chunked, reference, segments
from hope_jax.kernels.dgd.devices import device
from hope_jax.kernels.dgd.reference import Packed
from hope_jax.kernels.dgd.tpu import planning
from hope_jax.kernels.dgd.tpu import recurrence as tpu
from hope_jax.types import Array, UnsupportedError

# (q, k, u, eta, log_alpha, state, packed, *, read, tile, erase, precision,
# save_states, interpret) -> (o, states), arguments as `api.dgd_recurrence` has
# validated them, on one device. o is in u's dtype; states are the last one and,
# where read is 'chunk' and rows are packed, the one at the last chunk start.
Run = Callable[..., tuple[Array, tuple[Array, ...]]]


class Problem(NamedTuple):
  """What an implementation is asked whether it can run."""

  key_dim: int  # K
  value_dim: int  # V
  tile: int
  dtype: Any  # of the state
  interpret: Any


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
  # An interpreted kernel is one of a TPU.
  platform = 'tpu' if problem(1).interpret else device()[0]
  for name, entry in reversed(IMPLEMENTATIONS.items()):
    if platform not in entry.platforms or length < entry.least_tokens:
      continue
    obstacle = entry.obstacle(problem(tile_of(entry)))
    if obstacle is None:
      return entry, tile_of(entry)
    warnings.warn(
        f'the XLA form stands in for {name!r}, which {obstacle}',
        stacklevel=stacklevel,
    )
  entry = IMPLEMENTATIONS['xla']
  return entry, tile_of(entry)
