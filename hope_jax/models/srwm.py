"""A self-referential weight matrix as a mixer (Irie et al. 2022).

One matrix a head makes the output and its own key, query and rates, and
rewrites itself by the delta rule (arXiv 2202.05780, Eq. 5-8); phi is a softmax:

    [y_t, k_t, q_t, b_t] = phi(x_t) W_{t-1}
    e_t = phi(q_t) W_{t-1} - phi(k_t) W_{t-1}
    W_t = W_{t-1} + phi(k_t)^T (e_t sigmoid(b_t))

with a rate for each of the four parts of W. It is the closest relative of
self-modifying Titans: there each of the parts is a memory of its own, which can
be deep, and forgets.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.models.layers import Mixer, partitioned
from hope_jax.models.packing import Packing
from hope_jax.types import Array, PyTree


class Srwm(Mixer):
  """The recurrence of the module docstring, H heads of width K = D / H.

  Serial in time, in float32.
  """

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'w' [B, H, K, 3 K + 4]} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    config = self.config
    batch, length, dim = x.shape
    heads, width = config.heads, dim // config.heads
    sizes = (width, width, width, 4)
    cuts = (width, 2 * width, 3 * width)
    initial = self.param(
        'initial',
        partitioned(
            nn.initializers.normal(width**-0.5), 'heads', 'memory', 'memory'
        ),
        (heads, width, sum(sizes)),
    )
    initial = jnp.broadcast_to(initial, (batch, *initial.shape))

    def step(w, xs):
      """carry: w [B, H, K, 3 K + 4]; xs: x [B, H, K], starts, present [B]."""
      x, start, present = xs
      w = jnp.where(start[:, None, None, None], initial, w)
      read = lambda z: jnp.einsum('bhk,bhkv->bhv', nn.softmax(z), w)
      y, k, q, b = jnp.split(read(x), cuts, axis=-1)
      rate = jnp.repeat(
          nn.sigmoid(b), jnp.array(sizes), axis=-1,
          total_repeat_length=sum(sizes),
      )
      change = rate * (read(q) - read(k))
      new = w + nn.softmax(k)[..., None] * change[..., None, :]
      return jnp.where(present[:, None, None, None], new, w), y

    xs = (
        x.astype(jnp.float32).reshape(batch, length, heads, width),
        *packing.flags(batch, length),
    )
    w, y = jax.lax.scan(
        step, initial if state is None else state['w'],
        jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), xs),
    )
    y = jnp.moveaxis(y, 0, 1).reshape(x.shape)
    return self.out_of_heads()(y), {'w': w}
