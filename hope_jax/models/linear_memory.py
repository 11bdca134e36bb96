"""Linear attention, RetNet, DeltaNet and Gated DeltaNet as mixers."""

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.models.attention import rotate
from hope_jax.models.layers import partitioned
from hope_jax.models.mixers import MemoryMixer
from hope_jax.models.packing import Packing
from hope_jax.nested import linear_memory
from hope_jax.nested.dgd import unit
from hope_jax.sharding import current_spec
from hope_jax.types import Array, PyTree


class LinearMemory(MemoryMixer):
  """A matrix memory with static projections, written by a rule.

  Keys and queries are what the rule's authors have: elu(x) + 1 (linear
  attention), rotated by position (RetNet), or unit vectors (delta rules).

  Attributes:
    rule: a key of `nested.linear_memory.ERASES`.
  """

  # Flax's types do not see that the field of `Mixer` before goes by keyword.
  rule: str  # pyright: ignore[reportGeneralTypeIssues]

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'memory' [B, H, K, V], 'tail': of the convolution} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    config = self.config
    rule, heads = self.rule, config.heads
    tail = None if state is None else state['tail']
    (q, k, v), new_tail = self.streams(x, tail, packing)
    if rule == 'linear_attention':
      q, k = nn.elu(q) + 1, nn.elu(k) + 1
    elif rule == 'retnet':
      position = packing.position
      position = jnp.arange(x.shape[1]) if position is None else position
      q, k = (rotate(y, position, config.rope_base) for y in (q, k))
      k = k * k.shape[-1] ** -0.5
    else:
      q, k = unit(q), unit(k)

    def gate(name: str, bias: float) -> Array:
      init = nn.initializers.normal(x.shape[-1] ** -0.5)
      w = self.param(
          f'w_{name}', partitioned(init, 'embed', 'heads'), (x.shape[-1], heads)
      )
      start = nn.initializers.constant(bias)
      b = self.param(f'bias_{name}', partitioned(start, 'heads'), (heads,))
      return x.astype(jnp.float32) @ w + b

    if linear_memory.ERASES[rule]:
      beta, log_alpha = nn.sigmoid(gate('beta', 0.0)), None
      if rule == 'gated_deltanet':  # 0.999 a token where the gate is at rest
        log_alpha = -nn.softplus(gate('alpha', -6.9))
      write = linear_memory.delta_writes(v, beta, log_alpha)
    else:
      write = linear_memory.added_writes(rule, v)
    o, memory = linear_memory.layer(
        q, k, write,
        None if state is None else state['memory'],
        erase=linear_memory.ERASES[rule],
        starts=packing.starts,
        present=packing.present,
        precision='bf16' if config.dtype == 'bfloat16' else 'float32',
        partition=current_spec((x.shape[0], heads), 'batch', 'heads'),
        implementation=config.titans.implementation,
    )
    if rule == 'linear_attention':
      o = o[..., :-1] / jnp.maximum(o[..., -1:], 1e-6)
    return self.output(x, o), {'memory': memory, 'tail': new_tail}
