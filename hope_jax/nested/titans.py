"""Self-modifying Titans: memories that make their own keys, values and rates.

For token t, with z = x / |x| of a stream, every memory M a residual memory of
`memory.py` that starts from a learned initial state, M_c its copy at the last
chunk start, and g_t what the layer's input adds to a gate:

    k_t = unit(M_k,c(z_k))    v_t = M_v,c(z_v)    q_t = unit(z_q W_q)
    alpha_t = sigmoid(M_alpha,c(z_k) + g_alpha,t + b_alpha)
    eta_t = alpha_t eta_max sigmoid(M_eta,c(z_k) + g_eta,t + b_eta)
    v^_t = v_t of the main memory, bound(M_c(v_t)) of each other
    M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M_c; k_t, v^_t)
    o_t = r q_t + M_memory,t q_t        r a learned share of each head

for M in {memory, k, v, eta, alpha} (and q where it is adaptive).

**It holds its special cases.** What keys, values and gates are made of is a
static projection and what a memory adds to it. With memories that add nothing
and without r q this is Gated DeltaNet, without retention DeltaNet, without
erasure linear attention, whatever the chunk: a copy that is stale can only make
the addition stale. (Values are as long as theirs with `values='length'`, v_t =
x_v + |x_v| (M_v,c(z_v) - z_v), and then M_c is asked for v_t / |v_t|.) What is
added to keys and values has rank r = `projection_rank`, M(z) = z + (z W) P, so
that W has r columns where the main memory has K.

**The paper's printed form** (NL Eq. 83-91) is one field after the other:
`read_residual='full'`, r = 1 fixed, where a query drowns its answer;
`target='raw'`, v^_t = M_c(v_t) for the main memory too, or 'bounded';
`read='causal'`, o_t of M_{t-1}; `gate_input='key'`, g = 0; `projection_rank=0`,
W of K columns without P. It recalls less at equal bytes of state:
experiments/mqar/WHY.md has the figures.

**Stability is a property of this form, not of clipping.** Every memory is
written at unit keys, and 0 <= eta |k|^2 <= alpha < 1 makes the map M_{t-1} ->
M_t a contraction; targets lie in the unit ball, bound(x) = x / sqrt(1 + |x|^2),
or are made of the input and not of the main memory. A contraction with bounded
input stays bounded, whatever the text. The printed target feeds M back into
itself, M k -> M v, and can grow without limit.

Not specified by the paper, and chosen so: the gates' memories are scalar and
without identity path; the rate of all memories but the main one is smaller by
`projection_eta`; momentum is an average, S_t = mu_t S_{t-1} + (1 - mu_t) G_t, a
delay of each write and no amplifier, with mu_t a gate as eta.

**Signed eigenvalues** (`eigenvalues='signed'`). Along k_t the map has the
eigenvalue lambda = alpha - eta |k|^2. Above, 0 <= lambda <= alpha: a memory can
fade and be replaced, but not turn over, and so cannot count modulo two. With
eta_t = (1 + alpha_t) eta_max hard_sigmoid(.) it reaches -1, a reflection, and
the map still never lengthens anything. hard_sigmoid(x) = clip(x / 6 + 1 / 2)
reaches 0 and 1: sigmoid only nears them, and a count would fade with the
length. Targets are scaled by s = `target_scale`, so that eta s <= 1 - |lambda|
wherever |lambda| > alpha: with targets in the unit ball

    |M_t| <= max(alpha |M_{t-1}| + 1, |M_{t-1}|, 1),

no token pushes a memory beyond max(|M_0|, 1 / (1 - alpha)), and a full
reflection writes nothing. (This is without momentum, which spreads a write over
the tokens after it.) A reflection is exact in the chunk form too: it depends on
the token's own key and rate, and, as nothing is written, on no frozen copy.

**Counting** (`plain_heads`). A decay along the key erases part of whatever was
added up there, and a count comes out bent. The memories of plain heads take
gradient steps without it, M_t = alpha_t M_{t-1} - eta_t grad L, so that equal
writes add up to equal steps (NL Table 6, "w/o DGD", head by head). They have
nothing to turn over: with signed eigenvalues their eta is at most eta_max and
their targets are not scaled, so that a rate at its end is the full step. With
targets in the unit ball a token adds at most 1, |M_t| <= alpha |M_{t-1}| + 1:
with retention no more than 1 / (1 - alpha) in all, and without it as much as
the text is long.

**Exact counts** (`arithmetic='integer'`). Steps that are equal only as far as
training asked for add up to a drift, and no rate of a plain head can take a
count back to zero at once. `integers` rounds keys, values, rates and retention:
then neither is left to training.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hope_jax.kernels.dgd import implementations
from hope_jax.kernels.dgd.layer import Layer
from hope_jax.nested import dgd, levels
from hope_jax.nested import frozen as frozen_lib
from hope_jax.nested.memory import Memory, Mlp
from hope_jax.nested.titans_tile import (
  MAIN,
  Gates,
  Layout,
  Marks,
  Options,
  Streams,
  tile_params,
  tile_step,
)
from hope_jax.types import Array


class TitansState(NamedTuple):
  """A living memory: what a stream has written so far."""

  memories: dict[str, Memory]  # leaves [B, H, ., .], after the last token
  # The copies at the last chunk starts, of the memories that are read there
  # (see `copied`). Where the phase is 0 the next token opens a chunk, and they
  # are not read: a kernel leaves the memories there.
  frozen: dict[str, Memory]
  momentum: dict[str, Memory] | None
  phase: Array  # [B] int32, tokens into the longer of the two chunks


def copied(options: Options, main: Memory) -> frozen_lib.Copied:
  """Which memories carry a frozen copy from token to token.

  In chunks of one token it is the memory itself. The main memory's is read for
  targets of its own, for the gradient of an MLP or of the L2 loss, and where
  queries read it; a matrix with given values is written exactly without it.
  """
  read_main = (
      options.target != 'value' or options.objective == 'l2'
      or options.read == 'boundary' or isinstance(main, Mlp)
  )
  return frozen_lib.Copied(
      main=options.chunk > 1 and read_main,
      rest=options.projection_chunk > 1 and bool(options.adaptive),
  )


def _names(options: Options, kept: frozen_lib.Copied) -> tuple[str, ...]:
  """Names of the memories that are copied."""
  main = (MAIN,) if kept.main else ()
  return main + (options.adaptive if kept.rest else ())


def initial_state(params: dict, batch: int, options: Options) -> TitansState:
  """The state before the first token: the learned initial states.

  Args:
    params: see `layer`.
    batch: B.
    options: which memories are written.

  Returns:
    A state whose leaves lead with [B, H].
  """
  written = {n: params['memories'][n] for n in (MAIN, *options.adaptive)}
  memories = jax.tree.map(
      lambda x: jnp.broadcast_to(
          x.astype(jnp.promote_types(x.dtype, jnp.float32)), (batch, *x.shape)
      ),
      written,
  )
  momentum = None
  if options.momentum:
    momentum = jax.tree.map(jnp.zeros_like, memories)
  kept = copied(options, memories[MAIN])
  return TitansState(
      memories, {n: memories[n] for n in _names(options, kept)}, momentum,
      jnp.zeros((batch,), jnp.int32),
  )


def _opens(position: Array, chunk: int) -> Array:
  """Whether a chunk starts at this position of a document (-1: nothing)."""
  return (position >= 0) & (position % chunk == 0)


def _marks(grid: levels.Grid, options: Options) -> Marks:
  """What the tiles are told, [B, N * C] each."""

  def spread(flag):  # of a tile, to its tokens
    return jnp.repeat(flag, grid.tile, axis=1)

  flags = Marks(
      grid.valid,
      spread(_opens(grid.opens, options.chunk)),
      spread(_opens(grid.opens, options.projection_chunk)),
      spread(grid.reset),
  )
  return jax.tree.map(lambda flag: flag.astype(jnp.float32), flags)


def _scan_xla(step, params, carry, x, grid, marks):
  """`step` over the tiles of a grid, by `levels.scan_tiles`."""

  def body(carry, xs):
    """carry: memories, frozen and momentum; xs: what `tile_step` is given."""
    carry, (o, stats) = step(params, carry, *xs)
    return carry, (jnp.moveaxis(o, 1, 2), stats)

  xs = jax.tree.map(
      lambda stream: jnp.moveaxis(levels.to_tiles(stream, grid), 3, 2), x
  )
  marks = jax.tree.map(
      lambda mark: levels.split(mark, grid.tile)[:, :, None], marks
  )
  return levels.scan_tiles(body, carry, (xs, marks), grid)


def _scan_whole(step, params, carry, x, grid, marks, *, run):
  """`step` over the tiles of a grid, by an `implementations.RunScan`."""
  heads = x[0].q.shape[2]

  def in_tiles(x):  # [B, T, ...] -> [B, N * C, ...]
    x = jnp.moveaxis(levels.to_tiles(x, grid), 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])

  marks = jax.tree.map(
      lambda mark: jnp.broadcast_to(mark[..., None], (*mark.shape, heads)),
      marks,
  )
  carry, (o, stats) = run(
      step, params, carry, jax.tree.map(in_tiles, x), marks
  )
  o = o.reshape(o.shape[0], -1, grid.tile, *o.shape[2:])
  return carry, (jnp.moveaxis(o, 1, 0), stats)


def _choose_scan(
    options: Options, x: Streams, constants, carry, *, tile, partition,
    interpret,
):
  """`_scan_xla`, or `_scan_whole` by what the table of kernels answers."""
  sizes = Layer(
      key_dim=x.q.shape[-1], state_dim=carry[0].first.shape[-1], tile=tile,
      dtype=x.q.dtype, matrices=(constants, carry), interpret=interpret,
  )
  run = implementations.choose_scan(
      options.implementation, sizes, length=x.q.shape[1], stacklevel=4
  )
  if run is None:
    return _scan_xla
  run = functools.partial(run, layer=sizes, partition=partition)
  return functools.partial(_scan_whole, run=run)


# Banks of the memories, of the frozen copies that are kept or None, and of the
# momentum or None.
Carry = tuple[dgd.Bank, dgd.Bank | None, dgd.Bank | None]


def _to_carry(state: TitansState, layout: Layout) -> Carry:
  """What is scanned, of a state."""
  members = layout.members
  frozen = momentum = None
  if any(layout.copied):
    copies, _ = dgd.pack(state.memories | state.frozen, members.names)
    frozen = frozen_lib.only_copied(copies, members, layout.copied)
  if state.momentum is not None:
    momentum, _ = dgd.pack(state.momentum, members.names)
  return dgd.pack(state.memories, members.names)[0], frozen, momentum


def _to_state(carry: Carry, phase: Array, layout: Layout) -> TitansState:
  """The state, of what was scanned; without frozen copies they are new."""
  bank, frozen, momentum = carry
  members, kept = layout.members, layout.copied
  memories = copies = dgd.unpack(bank, members)
  if frozen is not None:
    whole = frozen_lib.with_copied(bank, frozen, members, kept)
    copies = dgd.unpack(whole, members)
  return TitansState(
      memories,
      {name: copies[name] for name in _names(layout.options, kept)},
      None if momentum is None else dgd.unpack(momentum, members),
      phase,
  )


def layer(
    params: dict,
    x: Streams,
    state: TitansState | None = None,
    *,
    options: Options,
    gates: Gates | None = None,
    starts: Array | None = None,
    present: Array | None = None,
    partition: PartitionSpec | None = None,
    interpret: Any = False,
) -> tuple[Array, TitansState, dict[str, Array]]:
  """Reads a sequence and rewrites itself while it reads.

  Args:
    params: 'memories': name -> initial state, leaves [H, ., .], for 'memory',
      'k', 'v', 'eta', 'alpha' and, if adaptive, 'q'; 'w_q' [H, K, K] otherwise;
      'bias_eta', 'bias_alpha' [H]; with momentum 'bias_mu' [H] and, without
      `gates`, 'w_mu' [H, K]; 'bases': name -> P [H, r, K] of the memories of
      low rank, if any; 'read_share' [H] if `read_residual` is 'learned'.
    x: the streams, [B, T, H, K].
    state: what earlier calls have left; None starts from the initial states.
    options: see `Options`.
    gates: what is added to the gates' logits; None: nothing, and mu is of the
      key stream.
    starts: [B, T] bool, where a document starts and the memories restart.
    present: [B, T] bool, false at padding, which writes and forgets nothing.
    partition: how the mesh that is set splits batch and heads; a kernel needs
      to be told, XLA sees for itself.
    interpret: as in `kernels.dgd.api.dgd_recurrence`.

  Returns:
    Outputs [B, T, H, K] (zero at padding; NaN in rows that do not lie on the
    grid, see `levels.REASONS`), the state after the last token, and
    diagnostics: 'max_write' (largest eta |k|^2), 'least_eigenvalue' (least
    alpha - eta |k|^2 of the decay of the main memory), 'mean_eta',
    'mean_alpha', 'state_norm' (largest Frobenius norm of a written matrix), and
    where documents start, how many rows do not lie on the grid.
  """
  batch, length = x.q.shape[:2]
  tile, period = sorted((options.chunk, options.projection_chunk))
  grid = levels.token_grid(
      batch, length, tile=tile, period=period,
      phase=None if state is None else state.phase,
      starts=starts, present=present, aligned=options.aligned,
  )
  if state is None:
    state = initial_state(params, batch, options)
  names = (MAIN, *options.adaptive)
  initial, members = dgd.pack(
      {name: params['memories'][name] for name in names}, names
  )
  layout = Layout(
      members=members,
      copied=copied(options, params['memories'][MAIN]),
      # Static: where all tiles open a chunk, no frozen copy is needed.
      always_open=grid.token is None and present is None and tile == period,
      restarts=starts is not None,
      options=options,
  )
  constants = tile_params(
      params, initial if layout.restarts else None, options.plain_heads
  )
  carry = _to_carry(state, layout)
  scan = _choose_scan(
      options, x, constants, carry, tile=tile, partition=partition,
      interpret=interpret,
  )
  if scan is not _scan_xla and layout.always_open and length % period == 0:
    carry = carry[0], None, carry[2]  # what comes next opens a chunk as well
  carry, (o, stats) = scan(
      functools.partial(tile_step, layout=layout), constants, carry, (x, gates),
      grid, _marks(grid, options),
  )
  state = _to_state(carry, grid.phase, layout)
  o = levels.from_tiles(o, grid, length)
  reason = levels.reason_of(grid, starts)
  o, poisoned = levels.poison(o, grid.overflow, reason)
  diagnostics = _diagnostics(stats, state.memories, grid, x.q.shape[2])
  return o, state, diagnostics | poisoned


def _diagnostics(
    stats: dict, memories: dict, grid: levels.Grid, heads: int
) -> dict[str, Array]:
  """What `layer` returns last, from the statistics of `tile_step`."""
  count = jnp.maximum(jnp.sum(grid.valid), 1) * heads
  count = count.astype(stats['eta'].dtype)
  norms = [
      jnp.max(jnp.sqrt(jnp.sum(w * w, axis=(-2, -1))))
      for w in jax.tree.leaves(memories)
  ]
  return jax.lax.stop_gradient({
      'max_write': jnp.max(stats['write']),
      'least_eigenvalue': 1 - jnp.max(stats['shrink']),
      'mean_eta': jnp.sum(stats['eta']) / count,
      'mean_alpha': jnp.sum(stats['alpha']) / count,
      'state_norm': jnp.max(jnp.stack(norms)),
  })
