"""A long short-term memory as a mixer (Hochreiter & Schmidhuber 1997)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.models.layers import Dense, Mixer, partitioned
from hope_jax.models.packing import Packing
from hope_jax.types import Array, PyTree


class Lstm(Mixer):
  """c_t = f c_{t-1} + i tanh(g), h_t = o tanh(c_t), width D.

  The gates [i, f, g, o] are x W + h_{t-1} U + b, with f's bias 1 at
  initialisation. Serial in time, in float32. It is the cell of Flax, for which
  documents that start inside a row and padding between them have no place.
  """

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'h', 'c' [B, D]} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    batch, length, dim = x.shape
    inputs = Dense(
        4 * dim, ('embed', 'heads'), jnp.float32,
        dot_general=self.dot_general, name='input',
    )(x)
    recurrent = self.param(
        'recurrent',
        partitioned(nn.initializers.orthogonal(), 'embed', 'heads'),
        (dim, 4 * dim),
    )
    forget = lambda _, shape, dtype: (
        jnp.zeros(shape, dtype).at[dim : 2 * dim].set(1.0)
    )
    bias = self.param('bias', partitioned(forget, 'heads'), (4 * dim,))

    def step(carry, xs):
      """carry: h and c [B, D]; xs: inputs [B, 4 D], starts, present [B]."""
      z, start, present = xs
      before = jax.tree.map(lambda y: jnp.where(start[:, None], 0, y), carry)
      h, c = before
      i, f, g, o = jnp.split(z + h @ recurrent, 4, axis=-1)
      c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
      h = nn.sigmoid(o) * jnp.tanh(c)
      after = jax.tree.map(
          lambda new, old: jnp.where(present[:, None], new, old),
          (h, c), before,
      )
      return after, h

    zero = jnp.zeros((batch, dim), jnp.float32)
    carry = (zero, zero) if state is None else (state['h'], state['c'])
    xs = (inputs + bias, *packing.flags(batch, length))
    (h, c), y = jax.lax.scan(
        step, carry, jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), xs)
    )
    return self.out_of_heads()(jnp.moveaxis(y, 0, 1)), {'h': h, 'c': c}
