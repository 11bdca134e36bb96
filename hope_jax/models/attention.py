"""Causal softmax attention with rotary positions and a sliding cache."""

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.models.attention_kernels import attend
from hope_jax.models.layers import Mixer, Norm
from hope_jax.models.packing import Packing
from hope_jax.sharding import constrain
from hope_jax.types import Array, PyTree


def rotate(x: Array, position: Array, base: float) -> Array:
  """Rotary embedding of x [B, T, H, K] at positions [B, T] or [T]."""
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = position[..., None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
  # bfloat16 would round each product, and they are to be summed.
  y = x.astype(jnp.float32)
  a, b = y[..., :half], y[..., half : 2 * half]
  parts = (a * cos - b * sin, a * sin + b * cos, y[..., 2 * half :])
  return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def _without_end(
    present: Array, k: Array, v: Array, seen: Array
) -> tuple[Array, Array, Array]:
  """Moves what a call ends in, padding [B, T], ahead of all keys [B, S].

  There it is the first to leave the cache: a window counts tokens only.
  """
  length = present.shape[1]
  last = jnp.max(jnp.where(present, 1 + jnp.arange(length), 0), axis=1)
  source = jnp.arange(k.shape[1]) - (length - last)[:, None]
  index = jnp.maximum(source, 0)
  k, v = (
      jnp.take_along_axis(x, index[..., None, None], axis=1) for x in (k, v)
  )
  seen = jnp.take_along_axis(seen, index, axis=1)
  return k, v, jnp.where(source >= 0, seen, -1)


class Attention(Mixer):
  """Attends to the last `attention_window` tokens of the same document.

  Each head's queries and keys get an RMS norm, which Transformer++ has not, and
  rotary positions.

  The window is part of the model and not of a call, so that a text fed in
  several calls gives what it gives in one. Its state is a cache of that many
  keys and values.
  """

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'k', 'v' [B, W, H, K], 'document' [B, W]} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    config = self.config
    batch, length, dim = x.shape
    window, heads = config.attention_window, config.heads
    shape = (batch, length, heads, dim // heads)

    def project(name):
      y = self.into_heads(dim, name)(x).reshape(shape)
      y = constrain(y, 'batch', 'time', 'heads', 'head_dim')
      return y if name == 'v' else Norm(None, name=f'norm_{name}')(y)

    q, k, v = project('q'), project('k'), project('v')
    position = packing.position
    position = jnp.arange(length) if position is None else position
    q = rotate(q, position, config.rope_base)
    k = rotate(k, position, config.rope_base)

    # Documents are told apart by a running number; -1 is no token.
    last = 0
    if state is not None:  # at least 0: a cache of padding is no document
      last = jnp.maximum(jnp.max(state['document'], axis=1), 0)[:, None]
    document = jnp.broadcast_to(last, (batch, length)).astype(jnp.int32)
    if packing.starts is not None:
      document += jnp.cumsum(packing.starts, axis=1, dtype=jnp.int32)
    seen = document
    if packing.present is not None:
      seen = jnp.where(packing.present, document, -1)
    if state is not None:
      k = jnp.concatenate([state['k'], k], axis=1)
      v = jnp.concatenate([state['v'], v], axis=1)
      seen = jnp.concatenate([state['document'], seen], axis=1)

    packed = state is not None or packing.starts is not None
    o = attend(
        q, k, v, document, seen if packed else None, window,
        implementation=config.attention_implementation,
    )
    if packing.present is not None:
      k, v, seen = _without_end(packing.present, k, v, seen)
    missing = window - k.shape[1]
    if missing > 0:
      pad = ((0, 0), (missing, 0), (0, 0), (0, 0))
      k, v = jnp.pad(k, pad), jnp.pad(v, pad)
      seen = jnp.pad(seen, pad[:2], constant_values=-1)
    new_state = {
        'k': k[:, -window:],
        'v': v[:, -window:],
        'document': seen[:, -window:],
    }
    return self.out_of_heads()(o.reshape(x.shape)), new_state
