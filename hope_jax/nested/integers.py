"""Memories of whole numbers: what they add up is exact, however long.

Not specified by the paper. A count drifts where the steps it is made of are
learned: a step and its undoing agree to what training asked for, about one in
the length of its strings, and what is beyond them comes out wrong. Here keys,
queries and targets are rounded to the corners of a cube, the signs of x as a
vector of length 1, and rates and retention to whole numbers. A token then
clears a memory (alpha = 0) or keeps it, and along its key adds to it (plain
heads, eta = 1), sets it (others, eta = 1), turns it over (eta = 2) or leaves it
alone (eta = 0). A plain memory W - W_0 is a multiple of 1 / K, exact in float32
up to 2^24 of them where K is a power of 4, whatever the weights are; elsewhere
a corner's 1 / sqrt(K) is rounded, the same for all, and equal steps are equal.

Rounding has no derivative of use: the one that is handed on is that of the
number before it, inside its bounds (straight-through: Bengio et al. 2013;
Hubara et al. 2016, for signs).
"""

import jax
import jax.numpy as jnp

from hope_jax.types import Array

# What a cleared memory keeps, as a logarithm is taken of it: far below the last
# digit of a step, so that the next write leaves nothing of it.
CLEARED = 2.0**-64


def straight_through(x: Array, y: Array) -> Array:
  """y, with the derivative of x."""
  return jax.lax.stop_gradient(y) + (x - jax.lax.stop_gradient(x))


def corner(x: Array) -> Array:
  """sign(x) / sqrt(K) over the last axis, with the derivative of clip(x)."""
  size = x.shape[-1] ** -0.5
  sign = jnp.where(x < 0, -1, jnp.ones_like(x))
  return straight_through(jnp.clip(x, -1, 1), size * sign)


def whole(x: Array) -> Array:
  """The nearest whole number, with the derivative of x."""
  return straight_through(x, jnp.round(x))


def log_retention(gate: Array) -> Array:
  """log alpha of hard_sigmoid(gate) rounded to 0 or 1; 0 is `CLEARED`."""
  alpha = jax.nn.hard_sigmoid(gate)
  rounded = jnp.maximum(jnp.round(alpha), CLEARED)
  return jnp.log(straight_through(alpha, rounded))


def compress(x: Array) -> Array:
  """x / (1 + |x|) of each number: a count of 1 shows beside one of 1,000.

  The norm that follows a read divides by the largest of its numbers.
  """
  return x / (1 + jnp.abs(x))
