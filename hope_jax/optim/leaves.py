"""Leaves of a parameter tree: their names, their kinds, their zeros."""

from collections.abc import Callable, Mapping
import re

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
# Parameters below a module of this name are stacked: their first axis is the
# layer. Not so where a number follows, as in a list of layers.
STACKED = 'layers'
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


def axes(path, leaf: Array) -> int:
  """How many axes a leaf has beside that of the layers."""
  names = keys(path)
  after = names[names.index(STACKED) :] if STACKED in names else []
  numbered = len(after) > 1 and after[1].isdigit()
  return jnp.ndim(leaf) - (bool(after) and not numbered)


def zeros(params: PyTree) -> PyTree:
  """Zeros like the parameters, float32 or wider: the start of a memory."""
  return jax.tree.map(
      lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)),
      params,
  )


def matrix_labels(params: PyTree) -> PyTree:
  """Labels every leaf 'matrix' or 'other', by its shape and its name.

  A matrix maps features to features: it has at least two axes beside that of
  the layers (`layers` in its path), and neither it nor the module that owns it
  is called an embedding, a head, a norm, a scale or a bias.
  """

  def label(path, leaf):
    named = any(NOT_A_MAP.search(key) for key in keys(path)[-2:])
    return 'matrix' if axes(path, leaf) >= 2 and not named else 'other'

  return jax.tree_util.tree_map_with_path(label, params)


def partition(
    transforms: Mapping[str, optax.GradientTransformation],
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
    label_fn: Callable[[PyTree], PyTree] | None,
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
      {'matrix': matrices, 'other': others}, label_fn or matrix_labels
  )
