"""One tile of self-modifying Titans: all its tokens read the frozen copies.

`tile_step` is the equations of `titans.py` for the tokens of one tile; XLA's
scan and the TPU kernel both run it.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.products import (
  Precision,
  column,
  matmul,
  row,
  transpose,
)
from hope_jax.nested import dgd, integers
from hope_jax.nested import frozen as frozen_lib
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.dgd import unit
from hope_jax.types import Array

GATES = ('eta', 'alpha')
MAIN = 'memory'


class Streams(NamedTuple):
  """What the layer reads, one vector a head: [B, T, H, K] each."""

  q: Array
  k: Array
  v: Array


class Gates(NamedTuple):
  """What the layer's input adds to the gates ahead of their sigmoids."""

  eta: Array  # [B, T, H] each
  alpha: Array | None = None  # None: no retention
  mu: Array | None = None  # None: no momentum


class Options(NamedTuple):
  """The plain arguments of the layer; `config.TitansConfig` argues each."""

  chunk: int
  projection_chunk: int
  objective: memory_lib.Objective
  target: Literal['bounded', 'raw', 'value']  # 'value': v^ = v, as in Titans
  read: Literal['causal', 'after', 'boundary']
  eta_max: float
  eigenvalues: Literal['positive', 'signed']
  projection_eta: float
  retention: bool
  layers: dgd.Layers
  momentum: bool
  adaptive: tuple[str, ...]  # the memories that are written, besides the main
  aligned: bool
  precision: Precision
  implementation: str = 'xla'  # or 'auto', or one that has a `scan`
  plain_heads: int = 0  # the last ones: no decay along the key
  read_residual: Literal['none', 'learned', 'full'] = 'full'
  values: Literal['unit', 'length'] = 'unit'
  arithmetic: Literal['real', 'integer'] = 'real'  # see `integers`

  def rule(self) -> dgd.Rule:
    """How the bank of the written memories is written and read."""
    return dgd.Rule(
        objective=self.objective, layers=self.layers, share=self.projection_eta,
        read='post' if self.read == 'after' else 'pre',
        precision=self.precision,
    )


class Marks(NamedTuple):
  """What a tile is told of its tokens, 0 or 1: [B, H, C] each."""

  valid: Array  # 1 where there is a token
  opens_main: Array  # 1 where the main memory's chunk starts with the tile
  opens_rest: Array  # the same for the other memories
  reset: Array  # 1 where a document starts with the tile


class Layout(NamedTuple):
  """What is known of a scan when it is compiled."""

  members: dgd.Members
  copied: frozen_lib.Copied
  always_open: bool  # every tile opens a chunk: no frozen copy is carried
  restarts: bool  # documents may start
  options: Options


def bound(x: Array) -> Array:
  """x / sqrt(1 + |x|^2): smooth, the identity for small x, |bound(x)| < 1."""
  return x / jnp.sqrt(1 + jnp.sum(x * x, axis=-1, keepdims=True))


def target_scale(eta: Array, alpha: Array) -> Array:
  """What a target is scaled by under signed eigenvalues, in [0, 1].

  Args:
    eta: write strengths at unit keys, 0 <= eta <= 1 + alpha.
    alpha: retentions, in [0, 1].

  Returns:
    min(1, (1 + alpha - eta) / eta): 1 up to eta = (1 + alpha) / 2, where the
    eigenvalue alpha - eta is -(1 - alpha) / 2; 0 at its -1.
  """
  return jnp.minimum(1, (1 + alpha - eta) / jnp.maximum(eta, 0.5))


class Projected(NamedTuple):
  """What the frozen memories make of a tile."""

  q: Array  # [B, H, C, K]; unit vectors, and so is k
  k: Array
  v: Array
  eta: Array  # [B, H, C]
  log_alpha: Array
  log_mu: Array | None


def project(params, frozen, members, x, gates, options) -> Projected:
  """Keys, values, queries and gates of a tile, from the frozen memories.

  Equations in `titans.py`.

  Args:
    params: as `tile_params` makes them.
    frozen: the frozen copies; memories that are not written are read from their
      learned initial states.
    members: the memories in the bank.
    x: Streams, [B, H, C, K] each.
    gates: Gates, [B, H, C] each, or None.
    options: as in `layer`.
  """
  copies = dgd.unpack(frozen, members)
  size = x.k.shape[-2]
  z_q, z_k, z_v = unit(x.q), unit(x.k), unit(x.v)
  rows = jnp.concatenate(
      [z_k, z_v] + ([z_q] if 'q' in options.adaptive else []), axis=-2
  )
  z = {}
  if options.adaptive:  # every stream against every memory, in one product
    of_rest = frozen.first[..., members.widths[0] :]
    z = members.rest.split(matmul(rows, of_rest, options.precision))

  def written(name, stream, start):
    """What a memory adds to its identity path."""
    if name not in z:
      memory, part = params['memories'][name], None
    else:
      memory = copies[name]
      part = z[name][..., start * size : (start + 1) * size, :]
    y = memory_lib.apply(memory, stream, options.precision, z=part)
    return _widen(params, name, y, options)

  exact = options.arithmetic == 'integer'
  to_key = integers.corner if exact else unit
  k = to_key(z_k + written('k', z_k, 0))
  v = written('v', z_v, 1)
  if options.values == 'unit':
    v = z_v + v
  else:
    v = x.v + jnp.sqrt(jnp.sum(x.v * x.v, axis=-1, keepdims=True) + 1e-12) * v
  if 'q' in options.adaptive:
    q = to_key(z_q + written('q', z_q, 2))
  else:
    q = to_key(matmul(z_q, params['w_q'], options.precision))

  def gate(name):
    y = row(written(name, z_k, 0) + params['bias_' + name])
    return y if gates is None else y + getattr(gates, name)

  eta_gate = gate('eta')
  log_alpha = jnp.zeros_like(eta_gate)
  if options.retention:
    to_log = integers.log_retention if exact else jax.nn.log_sigmoid
    log_alpha = to_log(gate('alpha'))
  most, share = jnp.exp(log_alpha), jax.nn.sigmoid
  if options.eigenvalues == 'signed':
    # Where nothing is erased there is nothing to turn over.
    decaying = params['decaying']
    most = 1 + (most if decaying is None else decaying[..., 0] * most)
    share = jax.nn.hard_sigmoid
  eta = most * options.eta_max * share(eta_gate)
  if exact:
    eta = integers.whole(eta)
  log_mu = None
  if options.momentum:
    log_mu = jax.nn.log_sigmoid(_momentum_gate(params, z_k, gates))
  return Projected(q, k, v, eta, log_alpha, log_mu)


def _momentum_gate(params, z_k, gates) -> Array:
  """The logits of mu, [B, H, C]."""
  if gates is not None:
    return gates.mu + row(params['bias_mu'])
  of_key = jnp.sum(z_k * params['w_mu'], axis=-1, keepdims=True)
  return row(of_key + params['bias_mu'])


def _widen(params, name, y, options) -> Array:
  """y [..., C, r] of a memory of low rank in the basis of its head."""
  if name not in params['bases']:
    return y
  return matmul(y, params['bases'][name], options.precision)


def tile_params(
    params: dict, initial: dgd.Bank | None, plain_heads: int
) -> dict:
  """What all tiles share, leaves [1, H, ., .].

  Args:
    params: as in `layer`.
    initial: the bank that documents start from, or None.
    plain_heads: as in `Options`.
  """
  spread = {
      'bias_eta': lambda x: x[:, None, None],
      'bias_alpha': lambda x: x[:, None, None],
      'bias_mu': lambda x: x[:, None, None],
      'w_mu': lambda x: x[:, None, :],
      'read_share': lambda x: x[:, None, None],
  }
  shared = {n: spread.get(n, lambda x: x)(x) for n, x in params.items()
            if n not in ('memories', 'bases')}
  shared['bases'] = dict(params.get('bases', {}))
  read_only = {n: m for n, m in params['memories'].items() if n != MAIN}
  shared.update(memories=read_only, initial=initial, decaying=None)
  if plain_heads:
    heads = params['bias_eta'].shape[0]
    decaying = jnp.arange(heads) < heads - plain_heads
    shared['decaying'] = decaying.astype(jnp.float32)[:, None, None]
  return jax.tree.map(lambda x: x[None], shared)


def tile_step(params, carry, xs, marks, kept=(), *, layout: Layout):
  """One tile of the layer: what XLA and the TPU kernel both run.

  Args:
    params: as `tile_params` makes them; [1, H, ., .], or [R, ., .] in a kernel.
    carry: banks (memories, frozen or None, momentum or None), [B, H, ., .] or
      [R, ., .].
    xs: `Streams`, [B, H, C, K] or [R, C, K], and `Gates` or None, like marks.
    marks: `Marks`, [B, 1 or H, C] or [R, C].
    kept: nothing; see `tile_scan`.
    layout: what is static.

  Returns:
    The carry, and (outputs like xs, statistics like marks).
  """
  del kept
  options, members = layout.options, layout.members
  bank, frozen, momentum = carry
  if layout.restarts:
    flag = column(marks.reset)[..., :1, :]
    initial = params['initial']
    bank = frozen_lib.select(flag, initial, bank)
    if frozen is not None:
      frozen = frozen_lib.select(flag, frozen_lib.only_copied(
          initial, members, layout.copied
      ), frozen)
    momentum = jax.tree.map(
        lambda x: frozen_lib.select(flag, jnp.zeros_like(x), x), momentum
    )
  carries_frozen = frozen is not None
  if layout.always_open or frozen is None:
    frozen = bank
  else:
    frozen = frozen_lib.refresh(
        frozen, bank, (marks.opens_main, marks.opens_rest), members,
        layout.copied,
    )
  xs = jax.tree.map(
      lambda x: x.astype(jnp.promote_types(x, jnp.float32)), xs
  )
  made = project(params, frozen, members, *xs, options)
  valid = marks.valid > 0
  # log mu = 0 neither adds to momentum nor forgets it.
  made = made._replace(
      eta=jnp.where(valid, made.eta, 0),
      log_alpha=jnp.where(valid, made.log_alpha, 0),
      log_mu=None if made.log_mu is None else jnp.where(valid, made.log_mu, 0),
  )
  sees_chunk = options.read != 'boundary'
  chunk = dgd.Chunk(
      k=made.k, targets=_targets(params, frozen, made, layout), eta=made.eta,
      log_alpha=made.log_alpha, log_mu=made.log_mu, present=marks.valid,
      q=made.q if sees_chunk else None,
  )
  new_bank, momentum, answer = dgd.step(
      bank, frozen, momentum, chunk, members=members, rule=options.rule(),
      decaying=params['decaying'],
  )
  if answer is None:
    main = dgd.unpack(frozen, members)[MAIN]
    answer = memory_lib.apply(main, made.q, options.precision)
  o = _output(params, made.q, answer, options)
  write = made.eta * row(jnp.sum(made.k * made.k, axis=-1, keepdims=True))
  erased = 0 * write if options.layers == 'none' else write
  if params['decaying'] is not None:
    erased = params['decaying'][..., 0] * erased
  alpha = jnp.exp(made.log_alpha)
  stats = {
      'write': write,
      'shrink': jnp.where(valid, 1 - alpha + erased, 0),
      'eta': made.eta,
      'alpha': jnp.where(valid, alpha, 0),
  }
  carry = new_bank, None, momentum
  if carries_frozen:
    frozen = frozen_lib.only_copied(frozen, members, layout.copied)
    carry = new_bank, frozen, momentum
  return carry, (o, stats)


def _output(params, q: Array, answer: Array, options: Options) -> Array:
  """o [B, H, C, V]: what the main memory answers, and the query's share."""
  o = answer
  if options.read_residual == 'full':
    o = q + o
  elif options.read_residual == 'learned':
    o = params['read_share'] * q + o
  return integers.compress(o) if options.arithmetic == 'integer' else o


def _targets(params, frozen, made: Projected, layout) -> dict[str, Array]:
  """name -> v^ [B, H, C, V], what each memory of the bank is to answer.

  A memory of low rank is asked for what its basis sees of its answer.
  """
  options, members = layout.options, layout.members
  decaying = params['decaying']
  v = made.v if options.values == 'unit' else unit(made.v)
  copies = dgd.unpack(frozen, members)
  targets, asked, start = {}, members, 0
  if options.target == 'value':
    targets[MAIN] = made.v
    asked, start = members.rest, members.widths[0]
  z = {}
  if asked.names:
    z = asked.split(matmul(v, frozen.first[..., start:], options.precision))
  for name in asked.names:
    memory = copies[name]
    y = memory_lib.apply(memory, v, options.precision, z=z[name])
    if name not in GATES:
      y = v + _widen(params, name, y, options)
    if name in params['bases']:
      y = matmul(y, transpose(params['bases'][name]), options.precision)
    targets[name] = y if options.target == 'raw' else bound(y)
  if options.arithmetic == 'integer':
    targets = {name: integers.corner(y) for name, y in targets.items()}
  if options.eigenvalues == 'positive':
    return targets
  alpha = jnp.exp(made.log_alpha)
  share = {name: options.projection_eta for name in targets} | {MAIN: 1.0}

  def scaled(name, y):
    scale = column(target_scale(share[name] * made.eta, alpha))
    if decaying is not None:
      scale = jnp.where(decaying > 0, scale, 1)
    return scale * y

  return {name: scaled(name, y) for name, y in targets.items()}
