"""Self-modifying Titans: memories that make their own keys, values and rates.

For token t, with every memory M a residual memory of `memory.py` that starts
from a learned initial state (NL Eq. 83-91; M_c is the copy at the last chunk
start):

    k_t = unit(M_k,c(x_t))    v_t = M_v,c(x_t)    q_t = unit(x_t W_q)
    alpha_t = sigmoid(M_alpha,c(x_t) + b_alpha)
    eta_t = alpha_t eta_max sigmoid(M_eta,c(x_t) + b_eta)
    v^_t = bound(M_c(v_t))                        each memory's own target
    M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M_c; k_t, v^_t)
    o_t = M_memory,t-1(q_t)                       or M_memory,c(q_t)

for M in {memory, k, v, eta, alpha} (and q where it is adaptive).

**Stability is a property of this form, not of clipping.** Every memory reads
and is written at unit vectors, 0 <= eta |k|^2 <= alpha < 1 makes the map
M_{t-1} -> M_t a contraction, and targets lie in the unit ball: bound(x) = x /
sqrt(1 + |x|^2). A contraction with bounded input stays bounded, whatever the
text. The paper's raw target feeds M back into itself, M k -> M v, and can grow
without limit.

Not specified by the paper, and chosen so: x_t enters every memory as a unit
vector; the gates' memories are scalar and without identity path; the rate of
all memories but the main one is smaller by `projection_eta`; momentum is an
average, S_t = mu_t S_{t-1} + (1 - mu_t) G_t, so that it delays a write and does
not amplify it, with mu_t = sigmoid(x_t w_mu + b_mu).

**Signed eigenvalues** (`eigenvalues='signed'`). Along k_t the map has the
eigenvalue lambda = alpha - eta |k|^2. Above, 0 <= lambda <= alpha: a memory can
fade and be replaced, but not turn over, and so cannot count modulo two. With
eta_t = (1 + alpha_t) eta_max hard_sigmoid(.) it reaches -1, a reflection, and
the map still never lengthens anything. hard_sigmoid(x) = clip(x / 6 + 1 / 2)
reaches 0 and 1: sigmoid only nears them, and a count would fade with the
length. Targets shrink by `room`, so that eta room <= 1 - |lambda| wherever
|lambda| > alpha: with targets in the unit ball

    |M_t| <= max(alpha |M_{t-1}| + 1, |M_{t-1}|, 1),

no token pushes a memory beyond max(|M_0|, 1 / (1 - alpha)), and a full
reflection writes nothing. (This is without momentum, which spreads a write over
the tokens after it.) A reflection is exact in the chunk form too: it depends on
the token's own key and rate, and, as nothing is written, on no frozen copy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.chunked import matmul
from hope_jax.nested import dgd, levels
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.dgd import unit
from hope_jax.nested.memory import Memory
from hope_jax.types import Array

GATES = ('eta', 'alpha')
MAIN = 'memory'


class Streams(NamedTuple):
  """What the layer reads, one vector a head: [B, T, H, K] each."""

  q: Array
  k: Array
  v: Array


class TitansState(NamedTuple):
  """A living memory: what a stream has written so far."""

  memories: dict[str, Memory]  # leaves [B, H, ., .], after the last token
  frozen: dict[str, Memory]  # the copies at the last chunk starts
  momentum: dict[str, Memory] | None
  phase: Array  # [B] int32, tokens into the longer of the two chunks


class Options(NamedTuple):
  """The plain arguments of the layer; `config.TitansConfig` argues each."""

  chunk: int
  projection_chunk: int
  objective: str
  target: str  # 'bounded', 'raw', or 'value' (v^ = v, as in Titans)
  read: str
  eta_max: float
  eigenvalues: str  # 'positive' or 'signed'
  projection_eta: float
  retention: bool
  layers: str
  momentum: bool
  adaptive: tuple[str, ...]  # the memories that are written, besides the main
  aligned: bool
  precision: str


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
  return TitansState(
      memories, memories, momentum, jnp.zeros((batch,), jnp.int32)
  )


def bound(x: Array) -> Array:
  """x / sqrt(1 + |x|^2): smooth, the identity for small x, |bound(x)| < 1."""
  return x / jnp.sqrt(1 + jnp.sum(x * x, axis=-1, keepdims=True))


def room(eta: Array, alpha: Array) -> Array:
  """What a target is scaled by under signed eigenvalues, in [0, 1].

  Args:
    eta: write strengths at unit keys, 0 <= eta <= 1 + alpha.
    alpha: retentions, in [0, 1].

  Returns:
    min(1, (1 + alpha - eta) / eta): 1 up to eta = (1 + alpha) / 2, where the
    eigenvalue alpha - eta is -(1 - alpha) / 2; 0 at its -1.
  """
  return jnp.minimum(1, (1 + alpha - eta) / jnp.maximum(eta, 0.5))


def project(params, frozen, columns, x, options):
  """Keys, values, queries and gates of a tile, from the frozen memories.

  Args:
    params: see `layer`.
    frozen: the frozen copies; memories that are not written are read from their
      learned initial states.
    columns: the memories in the bank.
    x: Streams of unit vectors, [B, H, C, K] each.
    options: as in `layer`.

  Returns:
    q, k, v [B, H, C, K]; eta, log_alpha, log_mu [B, H, C] (log_mu or None).
  """
  copies = dgd.unpack(frozen, columns)
  size = x.k.shape[-2]
  rows = jnp.concatenate(
      [x.k, x.v] + ([x.q] if 'q' in options.adaptive else []), axis=-2
  )
  z = {}
  if options.adaptive:  # every stream against every memory, in one product
    main = columns.widths[0]
    rest = dgd.Columns(columns.names[1:], columns.widths[1:])
    z = rest.split(matmul(rows, frozen.first[..., main:], options.precision))

  def memory(name, stream, start):
    if name not in z:
      source = params['memories'][name]
      return memory_lib.read(source, stream, options.precision)
    part = z[name][..., start * size : (start + 1) * size, :]
    return memory_lib.read(copies[name], stream, options.precision, z=part)

  k = unit(memory('k', x.k, 0))
  v = memory('v', x.v, 1)
  if 'q' in options.adaptive:
    q = unit(memory('q', x.q, 2))
  else:
    q = unit(matmul(x.q, params['w_q'], options.precision))

  def gate(name):
    bias = params['bias_' + name][:, None]
    return memory(name, x.k, 0)[..., 0] + bias

  log_alpha = jax.nn.log_sigmoid(gate('alpha'))
  if not options.retention:
    log_alpha = jnp.zeros_like(log_alpha)
  most, share = jnp.exp(log_alpha), jax.nn.sigmoid
  if options.eigenvalues == 'signed':
    most, share = 1 + most, jax.nn.hard_sigmoid
  eta = most * options.eta_max * share(gate('eta'))
  log_mu = None
  if options.momentum:
    log_mu = jax.nn.log_sigmoid(
        jnp.einsum('bhck,hk->bhc', x.k, params['w_mu'])
        + params['bias_mu'][:, None]
    )
  return q, k, v, eta, log_alpha, log_mu


def layer(
    params: dict,
    x: Streams,
    state: TitansState | None = None,
    *,
    options: Options,
    starts: Array | None = None,
    present: Array | None = None,
) -> tuple[Array, TitansState, dict[str, Array]]:
  """Reads a sequence and rewrites itself while it reads.

  Args:
    params: 'memories': name -> initial state, leaves [H, ., .], for 'memory',
      'k', 'v', 'eta', 'alpha' and, if adaptive, 'q'; 'w_q' [H, K, K] otherwise;
      'bias_eta', 'bias_alpha' [H]; with momentum 'w_mu' [H, K], 'bias_mu' [H].
    x: the streams, [B, T, H, K].
    state: what earlier calls have left; None starts from the initial states.
    options: see `Options`.
    starts: [B, T] bool, where a document starts and the memories restart.
    present: [B, T] bool, false at padding, which writes and forgets nothing.

  Returns:
    Outputs [B, T, H, K] (zero at padding; NaN in rows with more documents than
    the grid has room for, see `levels.token_grid`), the state after the last
    token, and diagnostics: 'max_write' (largest eta |k|^2), 'mean_eta',
    'mean_alpha', 'state_norm' (largest Frobenius norm of a written matrix).
  """
  batch, length = x.q.shape[:2]
  tile_size = min(options.chunk, options.projection_chunk)
  period = max(options.chunk, options.projection_chunk)
  grid = levels.token_grid(
      batch, length, tile=tile_size, period=period,
      phase=None if state is None else state.phase,
      starts=starts, present=present, aligned=options.aligned,
  )
  initial = initial_state(params, batch, options)
  fresh = state is None
  state = initial if fresh else state
  # What is static stays simple: tiles that all open a chunk need no frozen
  # copy.
  always_open = (
      grid.source is None and present is None and tile_size == period
  )
  restarts = starts is not None

  names = (MAIN, *options.adaptive)
  initial_bank, columns = dgd.pack(initial.memories, names)
  initial_momentum = None
  if options.momentum:
    initial_momentum, _ = dgd.pack(initial.momentum, names)
  shares = {
      n: 1.0 if n == MAIN else options.projection_eta for n in columns.names
  }

  def refresh(frozen, bank, opens):
    """Copies the memories whose chunk starts with this tile."""

    def open_for(chunk):
      return (opens >= 0) & (opens % chunk == 0)

    main, rest = open_for(options.chunk), open_for(options.projection_chunk)
    width = columns.widths[0]
    first = [
        levels.select(flag, bank.first[..., part], frozen.first[..., part])
        for flag, part in ((main, slice(width)), (rest, slice(width, None)))
    ]
    second = {
        n: levels.select(main if n == MAIN else rest, x, frozen.second[n])
        for n, x in bank.second.items()
    }
    first = jnp.concatenate(first, axis=-1)
    return dgd.Bank(first, second)

  def body(carry, xs, tile):
    """carry: banks (memories, frozen, momentum); xs: Streams of one tile."""
    if restarts:
      start = (initial_bank, initial_bank, initial_momentum)
      carry = levels.select(tile.reset, start, carry)
    bank, frozen, momentum = carry
    frozen = bank if always_open else refresh(frozen, bank, tile.opens)
    q, k, v, eta, log_alpha, log_mu = project(
        params, frozen, columns, jax.tree.map(unit, xs), options
    )
    valid = tile.valid[:, None, :]
    eta = jnp.where(valid, eta, 0)
    log_alpha = jnp.where(valid, log_alpha, 0)
    if log_mu is not None:  # mu = 1 neither adds to momentum nor forgets it
      log_mu = jnp.where(valid, log_mu, 0)

    copies = dgd.unpack(frozen, columns)
    v_z = columns.split(matmul(v, frozen.first, options.precision))
    targets = {}
    for name, memory in copies.items():
      y = memory_lib.read(memory, v, options.precision, z=v_z[name])
      targets[name] = y if options.target == 'raw' else bound(y)
    if options.target == 'value':
      targets[MAIN] = v
    if options.eigenvalues == 'signed':
      alpha = jnp.exp(log_alpha)
      targets = {
          name: room(shares[name] * eta, alpha)[..., None] * y
          for name, y in targets.items()
      }

    causal = options.read == 'causal'
    bank, momentum, o = dgd.step(
        bank, frozen, momentum, k, targets, eta, log_alpha, log_mu,
        valid.astype(eta.dtype), columns=columns, shares=shares,
        q=q if causal else None, objective=options.objective,
        layers=options.layers, precision=options.precision,
    )
    if not causal:
      o = memory_lib.read(copies[MAIN], q, options.precision)
    stats = {
        'max_write': jnp.max(eta * jnp.sum(k * k, axis=-1)),
        'sum_eta': jnp.sum(eta),
        'sum_alpha': jnp.sum(jnp.where(valid, jnp.exp(log_alpha), 0)),
    }
    return (bank, frozen, momentum), (jnp.moveaxis(o, 1, 2), stats)

  def heads_first(stream):
    return jnp.moveaxis(levels.to_tiles(stream, grid), 3, 2)

  carry = tuple(
      None if m is None else dgd.pack(m, names)[0]
      for m in (state.memories, state.frozen, state.momentum)
  )
  carry, (o, stats) = levels.scan_tiles(
      body, carry, jax.tree.map(heads_first, x), grid
  )
  carry = tuple(None if b is None else dgd.unpack(b, columns) for b in carry)
  o = levels.from_tiles(o, grid, length)
  o = jnp.where(grid.overflow[:, None, None, None], jnp.nan, o)
  count = jnp.maximum(jnp.sum(grid.valid), 1) * x.q.shape[2]
  norms = [
      jnp.max(jnp.sqrt(jnp.sum(w * w, axis=(-2, -1))))
      for w in jax.tree.leaves(carry[0])
  ]
  diagnostics = {
      'max_write': jnp.max(stats['max_write']),
      'mean_eta': jnp.sum(stats['sum_eta']) / count,
      'mean_alpha': jnp.sum(stats['sum_alpha']) / count,
      'state_norm': jnp.max(jnp.stack(norms)),
  }
  diagnostics = jax.lax.stop_gradient(diagnostics)
  return o, TitansState(*carry, grid.phase), diagnostics
