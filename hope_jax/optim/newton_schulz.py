"""Newton-Schulz: the nearest orthogonal matrix, by matrix products alone.

    X_0 = M / |M|_F
    X_{i+1} = a X_i + (b A + c A A) X_i,    A = X_i X_i^T

Nested Learning reads it as a few gradient steps on an orthogonality objective
inside one step of the outer optimizer (arXiv 2512.24695, Eq. 42-44). The cubic
that the paper prints needs many steps; this is the quintic of Muon (Jordan et
al., 2024), whose singular values end in [0.7, 1.2] after five.
"""

import jax
import jax.numpy as jnp

from hope_jax.optim import dimensions, precision
from hope_jax.types import Array

QUINTIC = (3.4445, -4.7750, 2.0315)


def check_steps(steps: int | Array) -> None:
  """Raises ValueError where a number of steps is known and negative."""
  if isinstance(steps, int) and steps < 0:
    raise ValueError(f'Newton-Schulz steps must not be negative; got {steps}')


def orthogonalize(
    x: Array,
    *,
    steps: int | Array = 5,
    eps: float = 1e-8,
    numbers: dimensions.Numbers = dimensions.STACK,
) -> Array:
  """Moves every singular value of every matrix towards 1.

  Args:
    x: [..., M, N]; each matrix by itself. A zero matrix stays zero, and NaN in
      one matrix stays in it.
    steps: iterations; as an array, as when it is an injected hyperparameter,
      they are a loop.
    eps: added to the Frobenius norm.
    numbers: which axes of x are M and N, where they are not the last two.

  Returns:
    Like x, in x's dtype; computed in at least float32. An explicitly sharded
    matrix is gathered for it, and the result sharded like x.

  Raises:
    ValueError: x has fewer than two axes, or steps is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> from hope_jax import optim
    >>> o = optim.orthogonalize(jnp.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    >>> bool(jnp.abs(o @ o.T - jnp.eye(2)).max() < 0.6)
    True
  """
  if x.ndim < 2:
    raise ValueError(
        f'Newton-Schulz needs matrices [..., M, N]; got shape {x.shape}'
    )
  check_steps(steps)
  return dimensions.on_matrices(
      lambda y: (_orthogonalize(y, steps, eps), ()), numbers, x
  )[0]


def _orthogonalize(x: Array, steps: int | Array, eps: float) -> Array:
  tall = x.shape[-2] > x.shape[-1]
  y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  y = jnp.swapaxes(y, -1, -2) if tall else y
  square = jnp.sum(y * y, axis=(-2, -1), keepdims=True)
  y = y / (precision.root(square) + eps)
  a, b, c = QUINTIC

  def iterate(_, y):
    gram = y @ jnp.swapaxes(y, -1, -2)
    return a * y + (b * gram + c * (gram @ gram)) @ y

  known = isinstance(steps, int)
  y = jax.lax.fori_loop(0, steps, iterate, y, unroll=True if known else None)
  return (jnp.swapaxes(y, -1, -2) if tall else y).astype(x.dtype)
