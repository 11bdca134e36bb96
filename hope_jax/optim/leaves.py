"""Leaves of a parameter tree: their names, their axes, their zeros."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hope_jax.types import Array, PyTree

# Parameters below modules of such names are stacked (their first axis is the
# layer) where nothing else is said; not where a number follows, as in a list.
STACKED = ('layers',)
# Which modules have stacked parameters: their names (none: ()), a function of
# the names on a leaf's path, or None for `STACKED`, a guess that warns.
Stacked = str | Sequence[str] | Callable[[Sequence[str]], bool] | None
# The array in a box of Flax: a variable of NNX, a partitioned one of Linen. NNX
# hands an optimizer boxes at init and arrays at update.
BOXED = jax.tree_util.GetAttrKey('value')


def keys(path) -> list[str]:
  """The names on a leaf's path, without that of a box around the leaf."""
  path = path[:-1] if path and path[-1] == BOXED else path
  return [
      str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
      for k in path
  ]


def axes(path, leaf: Array, stacked: Stacked = None) -> int:
  """How many axes a leaf has beside that of the layers."""
  return jnp.ndim(leaf) - _is_stacked(keys(path), stacked)


def _is_stacked(names: Sequence[str], stacked: Stacked) -> bool:
  if callable(stacked):
    return bool(stacked(names))
  if stacked is None:
    stacked = STACKED
  stacked = (stacked,) if isinstance(stacked, str) else stacked
  return any(
      name in stacked and not following.isdigit()
      for name, following in zip(names, (*names[1:], ''))
  )


def zeros(params: PyTree) -> PyTree:
  """Zeros like the parameters, float32 or wider: the start of a memory."""
  return jax.tree.map(
      lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)),
      params,
  )


def partition(
    transforms: Mapping[Any, optax.GradientTransformation],
    label_fn: Callable[[PyTree], PyTree] | PyTree,
) -> optax.GradientTransformationExtraArgs:
  """`optax.partition`, whose error for an unknown label names the leaf."""

  def labels(params):
    labelled = label_fn(params) if callable(label_fn) else label_fn
    for path, label in jax.tree_util.tree_leaves_with_path(labelled):
      if label not in transforms:
        raise ValueError(
            f'label {label!r} of leaf {"/".join(keys(path))!r} must be one of'
            f' {", ".join(map(repr, transforms))}'
        )
    return labelled

  return optax.partition(transforms, labels)
