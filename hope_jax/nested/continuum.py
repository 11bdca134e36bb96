"""Continuum Memory System: MLPs in a chain, each with its own update frequency."""

from typing import Callable, Sequence

from hope_jax.types import Array


def chain(
    x: Array,
    levels: Sequence[Callable[[Array], Array]],
    *,
    variant: str,
    weights: Array | None = None,
) -> Array:
  """The forward pass of a CMS block, fastest level first.

      sequential, nested:  y_0 = x, y_l = y_{l-1} + f_l(y_{l-1})   (NL Eq. 70)
      independent:         y = x + sum_l w_l f_l(x)                (NL Eq. 74)

  Args:
    x: residual stream, [..., D].
    levels: what each level adds, fastest first.
    variant: 'sequential', 'nested' or 'independent'.
    weights: the learned w_l of 'independent', [levels].

  Returns:
    [..., D].
  """
  if variant == 'independent':
    added = [w * f(x) for w, f in zip(weights, levels)]
    return x + sum(added[1:], start=added[0]).astype(x.dtype)
  for f in levels:
    x = x + f(x)
  return x
