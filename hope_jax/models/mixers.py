"""Sequence mixers: self-modifying Titans as a Flax module.

The module declares the learned initial states and hands them to the pure
function `nested.titans.layer`; no module is called inside the scan.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.config import TitansConfig
from hope_jax.kernels.dgd.products import Precision
from hope_jax.models.layers import (
  CausalConv,
  Mixer,
  Norm,
  gate,
  in_tiles,
  memory_param,
  partitioned,
  recall_tap_init,
  split_by_head,
  tap_init,
)
from hope_jax.models.packing import Packing
from hope_jax.nested import titans
from hope_jax.sharding import constrain, current_spec
from hope_jax.types import Array, PyTree

# How the taps of the three streams start, by `TitansConfig.conv_init`.
CONV_INIT = {'recall': recall_tap_init, 'identity': tap_init}


STREAMS = 'q', 'k', 'v'


def _logit(p: float) -> float:
  return math.log(p / (1 - p))


def identity_init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """The identity of each head; [H, K, K]."""
  del rng
  return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def titans_options(
    config: TitansConfig, precision: Precision
) -> titans.Options:
  """The plain arguments of `nested.titans.layer` for a configuration."""
  eta_max = config.eta_max
  if eta_max is None:
    eta_max = 1.0 if config.objective == 'delta' else 1.0 / config.chunk
  adaptive = [
      name
      for name, flag in (
          ('q', config.adaptive_q),
          ('k', config.adaptive_k),
          ('v', config.adaptive_v),
          ('eta', config.adaptive_gates),
          ('alpha', config.adaptive_gates and config.retention),
      )
      if flag
  ]
  derived: dict[str, Any] = dict(
      eta_max=eta_max,
      layers=config.dgd_layers if config.dgd else 'none',
      adaptive=tuple(adaptive),
      aligned=config.grid == 'aligned',
      precision=precision,
  )
  # The rest goes by the same name in both.
  same = {
      name: getattr(config, name)
      for name in titans.Options._fields
      if name not in derived
  }
  return titans.Options(**same, **derived)


class MemoryMixer(Mixer):
  """What mixers with a memory a head share: the streams in, the gate out."""

  def streams(
      self, x: Array, tail: Array | None, packing: Packing
  ) -> tuple[titans.Streams, Array | None]:
    """x [B, T, D] -> q, k and v streams [B, T, H, K], and the new tail."""
    model = self.config
    if tail is None and model.titans.conv:
      inputs = 3 if model.titans.input_projection == 'streams' else 1
      before = model.titans.conv_width - 1
      shape = (x.shape[0], before, inputs * model.dim)
      tail = jnp.zeros(shape, jnp.dtype(model.dtype))
    xs = x, packing.position, packing.present
    tail, streams = in_tiles(MemoryMixer._streams, self, tail, xs)
    return streams, tail

  def _streams(self, tail, xs):
    """carry: the tail; xs: x and the packing's position and present."""
    x, position, present = xs
    model, config = self.config, self.config.titans

    def project(x: Array, name: str, draw: Array | None = None) -> Array:
      return self.into_heads(model.dim, f'project_{name}', draw)(x)

    where = config.input_projection
    if where == 'streams':
      x = jnp.concatenate([project(x, name) for name in STREAMS], axis=-1)
    elif where == 'shared':
      x = project(x, 'shared')
    if config.conv:
      conv = CausalConv(
          config.conv_width, CONV_INIT[config.conv_init], streams=3,
          shared=where != 'streams',
          channels=None if where == 'equal' else 'heads', name='conv',
      )
      x, tail = conv(x, tail, position, present)
    elif where != 'streams':
      x = jnp.concatenate([x] * 3, axis=-1)
    streams = jnp.split(x, 3, axis=-1)
    if where == 'equal':
      draw = self.make_rng('params') if self.is_initializing() else None
      streams = [project(y, name, draw) for y, name in zip(streams, STREAMS)]
    if config.conv:
      streams = map(nn.silu, streams)
    heads = (*x.shape[:2], model.heads, model.dim // model.heads)
    parts = [
        constrain(
            y.reshape(heads).astype(jnp.float32),
            *('batch', 'time', 'heads', 'head_dim'),
        )
        for y in streams
    ]
    return tail, titans.Streams(*parts)

  def output(self, x: Array, o: Array) -> Array:
    """O(silu(x W) * Norm(o)): what the layer adds, [B, T, D]."""
    return in_tiles(MemoryMixer._output, self, None, (x, o))[1]

  def _output(self, carry, xs):
    """carry: nothing; xs: x and o."""
    x, o = xs
    model = self.config
    dtype = jnp.dtype(model.dtype)
    o = Norm(None, name='norm_out')(o).reshape(x.shape).astype(dtype)
    gate = nn.silu(self.into_heads(model.dim, 'gate')(x))
    return carry, self.out_of_heads()(gate * o)


class SelfModifyingTitans(MemoryMixer):
  """x -> O(gate(x) * Norm(o)), o from memories that rewrite themselves (NL §8).

  Streams: a causal convolution of window 4 and static projections, in the order
  of `TitansConfig.input_projection`, SiLU, then heads of width D / H. See
  `nested.titans` for what happens next.
  """

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'titans': TitansState, 'tail': of the convolution} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    config = self.config
    dtype = jnp.dtype(config.dtype)
    options = titans_options(
        config.titans, 'bf16' if dtype == jnp.bfloat16 else 'float32'
    )
    tail = None if state is None else state['tail']
    streams, new_tail = self.streams(x, tail, packing)
    o, titans_state, diagnostics = titans.layer(
        self.initial(options, config.dim // config.heads),
        streams,
        None if state is None else state['titans'],
        options=options,
        gates=self.gates(x) if config.titans.gate_input == 'layer' else None,
        starts=packing.starts,
        present=packing.present,
        partition=current_spec(
            (x.shape[0], config.heads), 'batch', 'heads'
        ),
    )
    self.tell(diagnostics)
    return self.output(x, o), {
        'titans': split_by_head(titans_state), 'tail': new_tail
    }

  def gates(self, x: Array) -> titans.Gates:
    """x [B, T, D] -> what it adds to the logits of each gate, [B, T, H]."""
    config = self.config.titans

    def logit(name: str) -> Array:
      y = gate(self, x, name, bias=None)
      return constrain(y, 'batch', 'time', 'heads')

    return titans.Gates(
        logit('eta'),
        logit('alpha') if config.retention else None,
        logit('mu') if config.momentum else None,
    )

  def initial(self, options: titans.Options, head_dim: int) -> dict:
    """Declares the outer parameters of `nested.titans.layer`."""
    config, heads = self.config.titans, self.config.heads
    rank = config.projection_rank
    if rank >= head_dim:
      rank = 0
    bases = {}

    def memory(name, value_dim):
      main = name == titans.MAIN
      hidden = None
      if config.memory == 'mlp' and (main or not rank):
        expansion = config.expansion if main else config.projection_expansion
        hidden = expansion * head_dim
      if rank and not main and value_dim > 1:
        value_dim = rank
        bases[name] = self.param(
            f'basis_{name}',
            partitioned(
                nn.initializers.normal(head_dim**-0.5),
                'heads', 'memory', 'memory',
            ),
            (heads, rank, head_dim),
        )
      return memory_param(
          self, f'memory_{"main" if main else name}', key_dim=head_dim,
          value_dim=value_dim, hidden=hidden, heads=heads,
      )

    def bias(value):
      init = nn.initializers.constant(value)
      return partitioned(init, 'heads')

    plain = config.plain_heads
    etas = [config.eta_init] * (heads - plain) + [config.plain_eta_init] * plain
    if config.eigenvalues == 'signed':  # those of a hard sigmoid
      gates = jnp.array([6 * eta - 3 for eta in etas])
    else:
      gates = jnp.array([_logit(eta) for eta in etas])
    memories = {
        titans.MAIN: memory(titans.MAIN, head_dim),
        'k': memory('k', head_dim),
        'v': memory('v', head_dim),
        'eta': memory('eta', 1),
    }
    params = {
        'memories': memories,
        'bases': bases,
        'bias_eta': self.param('bias_eta', bias(gates), (heads,)),
    }
    if config.retention:
      memories['alpha'] = memory('alpha', 1)
      keeps = config.retention_init
      whole = config.arithmetic == 'integer'  # then of a hard sigmoid
      start = 6 * keeps - 3 if whole else _logit(keeps)
      params['bias_alpha'] = self.param('bias_alpha', bias(start), (heads,))
    if 'q' in options.adaptive:
      memories['q'] = memory('q', head_dim)
    else:
      params['w_q'] = self.param(
          'w_q',
          partitioned(identity_init, 'heads', 'memory', 'memory'),
          (heads, head_dim, head_dim),
      )
    if config.momentum:
      params['bias_mu'] = self.param(
          'bias_mu', bias(_logit(config.momentum_init)), (heads,)
      )
      if config.gate_input == 'key':
        params['w_mu'] = self.param(
            'w_mu',
            partitioned(nn.initializers.normal(0.02), 'heads', 'memory'),
            (heads, head_dim),
        )
    if config.read_residual == 'learned':
      start = bias(config.residual_init)
      params['read_share'] = self.param('read_share', start, (heads,))
    return params
