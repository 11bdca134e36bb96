"""Associative memories: a matrix, or a two-layer MLP with a residual path.

A memory maps a key to a value and is written by gradient descent on its own
loss (NL Def. 1). Two forms, of matrices with rows as inputs, so that `w` is the
transpose of the paper's:

    Matrix  M(z) = z + z w
    Mlp     M(z) = z + phi(z w_in) w_out        (NL Eq. 89)

The identity path is there where K = V, and not for the scalar memories of the
gates. It makes forgetting harmless: a memory that has decayed to nothing is the
identity, not zero, and its self-generated target M(v) is v.

Not specified by the paper: phi. Here phi(z) = GELU(z) / sqrt(F), so that a unit
key and a `w_in` of unit variance give a hidden vector of length about one.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.products import Precision, matmul
from hope_jax.types import Array

Objective = Literal['delta', 'l2']


class Matrix(NamedTuple):
  """M(z) = z + z w: one layer, both the first and the last."""

  w: Array  # [..., K, V]

  @property
  def first(self) -> Array:
    """The layer that sees the key."""
    return self.w


class Mlp(NamedTuple):
  """M(z) = z + phi(z w_in) w_out."""

  w_in: Array  # [..., K, F]
  w_out: Array  # [..., F, V]

  @property
  def first(self) -> Array:
    """The layer that sees the key."""
    return self.w_in


Memory = Matrix | Mlp


class Write(NamedTuple):
  """What is written into a layer y = x w: w += eta x^T u."""

  x: Array  # [..., C, K or F], the layer's input
  u: Array  # [..., C, F or V], the negative gradient at its output


class Writes(NamedTuple):
  """What is written into each layer of a memory."""

  first: Write  # into the layer that sees the key
  second: Write | None  # into the output layer of an MLP


def init(
    rng: Array,
    *,
    key_dim: int,
    value_dim: int,
    hidden: int | None,
    heads: int,
    std: float = 0.02,
) -> Memory:
  """Draws the initial state of a memory, an outer parameter that is learned.

  Args:
    rng: a PRNG key.
    key_dim: K.
    value_dim: V.
    hidden: F of an MLP memory; None makes a matrix.
    heads: H; every head has a memory of its own.
    std: standard deviation of the last layer. Not zero, so that each layer has
      a gradient, and small, so that a memory starts close to the identity.

  Returns:
    The memory, leaves [H, ...] float32.
  """
  normal = functools.partial(jax.random.normal, dtype=jnp.float32)
  if hidden is None:
    return Matrix(std * normal(rng, (heads, key_dim, value_dim)))
  rng_in, rng_out = jax.random.split(rng)
  return Mlp(
      w_in=normal(rng_in, (heads, key_dim, hidden)),
      w_out=std * normal(rng_out, (heads, hidden, value_dim)),
  )


def activation(z: Array) -> Array:
  """phi(z) = GELU(z) / sqrt(F), F the last axis."""
  return z * _normal_cdf(z) / math.sqrt(z.shape[-1])


def _normal_cdf(z: Array) -> Array:
  return 0.5 * (1 + jax.lax.erf(z / math.sqrt(2)))


def activation_gradient(z: Array) -> Array:
  """phi'(z), elementwise."""
  pdf = jnp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
  return (_normal_cdf(z) + z * pdf) / math.sqrt(z.shape[-1])


def identity(z: Array, y: Array) -> Array:
  """Adds the identity path where the widths of input and output agree."""
  return z + y if z.shape[-1] == y.shape[-1] else y


def apply(
    memory: Memory,
    x: Array,
    precision: Precision = 'float32',
    *,
    z: Array | None = None,
) -> Array:
  """M(x) without its identity path: what has been learned and written.

  Args:
    memory: leaves [..., K, V], leading axes broadcast against x's.
    x: inputs, [..., C, K].
    precision: of the products, as in `chunk_step`.
    z: x times the first layer, where the caller has it already.

  Returns:
    [..., C, V].
  """
  if z is None:
    z = matmul(x, memory.first, precision)
  if isinstance(memory, Matrix):
    return z
  return matmul(activation(z), memory.w_out, precision)


def read(
    memory: Memory,
    x: Array,
    precision: Precision = 'float32',
    *,
    z: Array | None = None,
) -> Array:
  """M(x), without any write; arguments as of `apply`."""
  return identity(x, apply(memory, x, precision, z=z))


def write_values(
    memory: Memory,
    k: Array,
    target: Array,
    *,
    objective: Objective,
    precision: Precision = 'float32',
    z: Array | None = None,
) -> Writes:
  """Closed-form inner gradient: what to write into each layer.

  The loss is -<M(k), v^> ('delta') or 1/2 |M(k) - v^|^2 ('l2'), with v^ held
  fixed. For a layer y = x w the gradient is x^T (dL/dy): the layer's key is x
  and its write value u = -dL/dy (NL Eq. 54-57 and 91).

  Args:
    memory: the frozen copy that the gradient is taken at.
    k: keys, [..., C, K].
    target: v^, [..., C, V].
    objective: 'delta' or 'l2'.
    precision: of the products.
    z: k times the first layer, where the caller has it already.

  Returns:
    What to write, layer by layer.
  """

  def value(z):
    if objective == 'l2':
      return target - read(memory, k, precision, z=z)
    return target

  if isinstance(memory, Matrix):
    return Writes(Write(k, value(z)), None)
  if z is None:
    z = matmul(k, memory.w_in, precision)
  u = value(z)
  back = matmul(u, jnp.swapaxes(memory.w_out, -1, -2), precision)
  return Writes(
      Write(k, activation_gradient(z) * back), Write(activation(z), u)
  )
