"""Products, triangular inverses and columns, as TPU kernels take them.

Plain JAX, with the few derivatives written out whose automatic form is worse:
in accuracy, in time, or because a kernel compiler refuses it.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from hope_jax.types import Array

Precision = Literal['float32', 'bf16']


def matmul(x: Array, y: Array, precision: Precision) -> Array:
  """x @ y over the last two axes, accumulated in at least float32.

  With 'bf16' the operands of the product and of its two derivatives are
  bfloat16, for which forward mode is not defined.
  """
  if x.ndim > 3 and x.shape[:-2] == y.shape[:-2]:  # kernels batch over one axis
    flat_x, flat_y = (a.reshape(-1, *a.shape[-2:]) for a in (x, y))
    product = matmul(flat_x, flat_y, precision)
    return product.reshape(*x.shape[:-2], *product.shape[-2:])
  if precision == 'bf16':
    return _bf16_matmul(x, y)
  return jnp.matmul(x, y, precision='highest')


@jax.custom_vjp
def _bf16_matmul(x: Array, y: Array) -> Array:
  return _bf16_matmul_fwd(x, y)[0]


def _bf16_matmul_fwd(x, y):
  operands = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
  product = jnp.matmul(*operands, preferred_element_type=jnp.float32)
  # Of the arguments themselves only the dtypes are needed.
  return product, (*operands, x[..., :0], y[..., :0])


def _bf16_matmul_bwd(residuals, d):
  *operands, like_x, like_y = residuals
  x, y = operands
  d = d.astype(jnp.bfloat16)

  def gradient(subscripts, a, b, of, like):
    g = jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
    # Axes that were broadcast are summed.
    g = g.sum(range(g.ndim - of.ndim))
    wide = [i for i in range(of.ndim) if of.shape[i] < g.shape[i]]
    return g.sum(wide, keepdims=True).astype(like.dtype)

  return (
      gradient('...mn,...kn->...mk', d, y, x, like_x),
      gradient('...mk,...mn->...kn', x, d, y, like_y),
  )


_bf16_matmul.defvjp(_bf16_matmul_fwd, _bf16_matmul_bwd)


def transpose(x: Array) -> Array:
  """Swaps the last two axes."""
  return jnp.swapaxes(x, -1, -2)


def inverse_unit_lower(
    lower: Array, precision: Precision = 'float32'
) -> Array:
  """Returns (I + lower)^{-1} for strictly lower triangular [..., C, C].

  Doubles the size of exact diagonal blocks: with T_b the inverse of the b x b
  blocks and L_b what joins two of them, T_2b = T_b - T_b L_b T_b. Every T_b is
  a true inverse, so keys that repeat cannot blow up powers of `lower` as they
  do in a Neumann series.

  With bfloat16 products the result is good to two digits. A Newton step
  T + T (I - (I + L) T), its residual in twice bfloat16, makes that four.
  """
  size = lower.shape[-1]
  index = jnp.arange(size)
  eye = jnp.eye(size, dtype=lower.dtype)
  inverse = jnp.broadcast_to(eye, lower.shape)
  block = 1
  while block < size:
    row, column = index[:, None] // block, index[None, :] // block
    joins = (row // 2 == column // 2) & (row == column + 1)
    middle = jnp.where(joins, lower, 0)
    if block == 1:
      inverse = inverse - middle
    else:
      inverse = inverse - matmul(
          inverse, matmul(middle, inverse, precision), precision
      )
    block *= 2
  if precision == 'float32':
    return inverse
  # The shortened T is the one improved, so that only L needs a second part.
  inverse = leading_half(inverse)
  residual = eye - inverse - _matmul_two_parts(lower, inverse)
  return inverse + matmul(inverse, residual, precision)


def leading_half(x: Array) -> Array:
  """float32 x with its first 16 bits, which bfloat16 holds exactly.

  As a mask, because compilers may leave out a cast there and back.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def prefix(x: Array) -> Array:
  """Cumulated sums over the last axis, as a product with a triangle of ones."""
  index = jnp.arange(x.shape[-1])
  upto = (index[:, None] <= index[None, :]).astype(x.dtype)
  return jnp.matmul(x, upto, precision='highest')


@jax.custom_jvp
def column(x: Array) -> Array:
  """[..., C] -> [..., C, 1].

  On a TPU a vector lies along lanes, and a gradient that comes back as a column
  has to be transposed. The derivative is written so that it can be: as row sums
  of a diagonal matrix, whose own derivative is a sum over rows.
  """
  return x[..., None]


@column.defjvp
def _column_jvp(primals, tangents):
  return column(*primals), column_by_sum(*tangents)


def row(x: Array) -> Array:
  """[..., C, 1] -> [..., C], the inverse of `column`, for the same reason."""
  own = jnp.eye(x.shape[-2], dtype=bool)
  return jnp.sum(jnp.where(own, x, 0), axis=-2)


def column_by_sum(x: Array) -> Array:
  """`column`, as row sums of a diagonal matrix."""
  own = jnp.eye(x.shape[-1], dtype=bool)
  return jnp.sum(jnp.where(own, x[..., None, :], 0), axis=-1, keepdims=True)


def unit_lower_solve(
    lower: Array, inverse: Array, rhs: Array, precision: Precision
) -> Array:
  """x with (I + lower) x = rhs, given the inverse.

  Differentiated as a linear system, (I + lower) dx = d rhs - (d lower) x: the
  backward pass is one product with the transposed inverse, d lower = -(d rhs)
  x^T, instead of a walk back through the products that made the inverse.
  """
  solve = _solve_bf16 if precision == 'bf16' else _solve_exact
  return solve(lower, inverse, rhs)


@jax.custom_jvp
def _solve_exact(lower: Array, inverse: Array, rhs: Array) -> Array:
  del lower
  return matmul(inverse, rhs, 'float32')


@_solve_exact.defjvp
def _solve_exact_jvp(primals, tangents):
  lower, inverse, rhs = primals
  d_lower, _, d_rhs = tangents
  x = _solve_exact(lower, inverse, rhs)
  residual = d_rhs - matmul(d_lower, x, 'float32')
  return x, _solve_exact(lower, inverse, residual)


def _matmul_two_parts(x: Array, y: Array) -> Array:
  """x @ y with x in twice bfloat16 and y in bfloat16."""
  size = x.shape[-2]
  high = leading_half(x)
  parts = matmul(jnp.concatenate([high, x - high], axis=-2), y, 'bf16')
  return parts[..., :size, :] + parts[..., size:, :]


@jax.custom_vjp
def _solve_bf16(lower: Array, inverse: Array, rhs: Array) -> Array:
  """T rhs with more digits of T than bfloat16 has, and backward of both.

  Where all keys of a chunk are one, T is I less its subdiagonal. What rounding
  takes from the -1 then weighs on the sum of all right-hand sides; and backward
  it takes differences of neighbours in sums over all later tokens.
  """
  del lower
  return _matmul_two_parts(inverse, rhs)


def _solve_bf16_fwd(lower, inverse, rhs):
  x = _solve_bf16(lower, inverse, rhs)
  return x, (inverse, x)


def _solve_bf16_bwd(residuals, dx):
  inverse, x = residuals
  inverse_t, high = transpose(inverse), leading_half(dx)
  d_rhs = _matmul_two_parts(inverse_t, high)
  d_rhs += matmul(inverse_t, dx - high, 'bf16')
  return -matmul(d_rhs, transpose(x), 'bf16'), None, d_rhs


_solve_bf16.defvjp(_solve_bf16_fwd, _solve_bf16_bwd)
