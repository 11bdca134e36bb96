"""Leaves of a parameter tree: their names, their kinds, their zeros."""

from collections.abc import Callable, Mapping, Sequence
import functools
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import optax

from hope_jax.types import Array, PyTree

# A leaf of such a name, or in a module of such a name, is a table, a head, a
# gain or an offset, and no map from features to features, whatever its shape.
NOT_A_MAP = re.compile(
    r'(^|_)(embed\w*|(lm_|output_)?head|norm\w*|layer_?norm\w*|scale|bias)(_|$)',
    re.IGNORECASE,
)
# Parameters below modules of such names are stacked (their first axis is the
# layer) where nothing else is said; not where a number follows, as in a list.
STACKED = ('layers',)
# Which modules have stacked parameters: their names (none: ()), a function of
# the names on a leaf's path, or None for `STACKED`, a guess that warns.
Stacked = str | Sequence[str] | Callable[[Sequence[str]], bool] | None
LabelFn = Callable[[PyTree], PyTree]
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


def matrix_labels(params: PyTree, *, stacked: Stacked = None) -> PyTree:
  """Labels every leaf 'matrix' or 'other', by its shape and its name.

  A matrix maps features to features: it has at least two axes beside that of
  the layers, and neither it nor the module that owns it is called an embedding,
  a head, a norm, a scale or a bias.

  Args:
    params: the parameters.
    stacked: which modules hold the parameters of many layers in one array
      [layers, ...]: their names, () for none, or a function (names on a leaf's
      path) -> bool. None takes modules called `layers` for such, and warns of a
      leaf [m, n] that is a matrix if they are not.

  Returns:
    A tree of 'matrix' and 'other'.
  """

  def label(path, leaf):
    names = keys(path)
    if any(NOT_A_MAP.search(name) for name in names[-2:]):
      return 'other'
    if axes(path, leaf, stacked) >= 2:
      return 'matrix'
    if stacked is None and jnp.ndim(leaf) == 2:
      warnings.warn(
          f'{"/".join(names)!r} {jnp.shape(leaf)} is taken for vectors, one for'
          ' each layer, as it is below `layers`; say stacked=() if it is a'
          " matrix, stacked='layers' if it is not, or give a label_fn",
          stacklevel=2,
      )
    return 'other'

  return jax.tree_util.tree_map_with_path(label, params)


def labeller(label_fn: LabelFn | None, stacked: Stacked) -> LabelFn:
  """`label_fn`, or else `matrix_labels` with its option."""
  return label_fn or functools.partial(matrix_labels, stacked=stacked)


def describe(
    params: PyTree,
    *,
    label_fn: LabelFn | None = None,
    stacked: Stacked = None,
) -> str:
  """A table of what an optimizer takes each leaf for: a line a leaf.

  Args:
    params: the parameters, or their shapes.
    label_fn: as that of `muon` and `m3`.
    stacked: see `matrix_labels`.

  Example:
    >>> import jax.numpy as jnp
    >>> from hope_jax import optim
    >>> print(optim.describe({'up': jnp.ones((4, 8)), 'bias': jnp.ones(8)}))
    bias  (8,)    other
    up    (4, 8)  matrix
  """
  labels = jax.tree.leaves(labeller(label_fn, stacked)(params))
  rows = [
      ('/'.join(keys(path)), str(jnp.shape(leaf)), label)
      for (path, leaf), label in zip(
          jax.tree_util.tree_leaves_with_path(params), labels
      )
  ]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
      '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
      for row in rows
  )


def partition(
    transforms: Mapping[Any, optax.GradientTransformation],
    label_fn: LabelFn | PyTree,
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


def require_matrices(params: PyTree, rule: str) -> None:
  """Raises ValueError, with the leaf's name, unless all leaves are matrices."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if jnp.ndim(leaf) < 2:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(
          f'{rule} needs matrices [..., M, N]; leaf {name!r} has shape'
          f' {jnp.shape(leaf)}; give such leaves another optimizer with'
          ' optax.partition'
      )


def beside_adamw(
    direction: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    adam_learning_rate: optax.ScalarOrSchedule | None,
    label_fn: LabelFn | None,
    stacked: Stacked,
    **adam,
) -> optax.GradientTransformationExtraArgs:
  """`direction` for matrices, AdamW for everything else.

  Args:
    direction: of descent, for the leaves labelled 'matrix'.
    learning_rate: number or schedule.
    weight_decay: decoupled, on matrices.
    adam_learning_rate: of the other leaves; None: the same.
    label_fn: parameters -> a tree of 'matrix' and 'other'; None:
      `matrix_labels`.
    stacked: see there.
    **adam: further options of `optax.adamw`.

  Returns:
    A transformation.
  """
  if adam_learning_rate is None:
    adam_learning_rate = learning_rate
  matrices = optax.chain(
      direction,
      optax.add_decayed_weights(weight_decay),
      optax.scale_by_learning_rate(learning_rate),
  )
  others = optax.adamw(adam_learning_rate, weight_decay=0.0, **adam)
  return partition(
      {'matrix': matrices, 'other': others}, labeller(label_fn, stacked)
  )
