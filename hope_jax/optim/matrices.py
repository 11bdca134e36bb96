"""Which parameters are matrices, and which of their axes are in and out.

An optimizer of matrices takes a leaf [..., in, out] for one matrix or a stack
of them. Flax's attention has kernels [in, heads, head_dim] and [heads,
head_dim, out], its convolutions [..., in, out] with the window in front: these
are one matrix each, of the axes that are summed over and of those that are not.
`optax.contrib.MuonDimensionNumbers` say which; here they are right by
themselves for Flax's own layers, and can be given.
"""

from collections.abc import Callable, Sequence
import functools
import math
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import leaves, precision
from hope_jax.optim.dimensions import STACK, Numbers, axes_of, sides, size
from hope_jax.types import Array, PyTree

# Of a tree of parameters, or of its beginning; a leaf that is no matrix: None.
NumbersOf = Numbers | PyTree | Callable[[PyTree], PyTree] | None
LabelFn = Callable[[PyTree], PyTree]

# A leaf of such a name, or in a module of such a name, is a table, a head, a
# gain, an offset, a rate or a low-rank part, and no map from features to
# features, whatever its shape.
NOT_A_MAP = re.compile(
    r'(^|_)((un)?embed\w*|emb|wte|wpe|(lm_|output_)?head|norm\w*|'
    r'layer_?norm\w*|scale|bias|a_log|lora_\w+)(_|$)|(^|_)tokens?$',
    re.IGNORECASE,
)
_CONVOLUTION = re.compile(r'(^|_)conv(\d|_|$)|^Conv', re.IGNORECASE)
_GENERAL = re.compile(r'(Dense|Linear)General')
_INTO_HEADS = re.compile(r'(query|key|value|qkv|q|k|v)(_proj)?$')
_OUT_OF_HEADS = re.compile(r'(out|o)(_proj)?$')


def _of_flax(path, leaf: Array, stacked: leaves.Stacked) -> Numbers | None:
  """The numbers of a kernel of Flax with more than two axes, if it is known."""
  names = leaves.keys(path)
  axes = leaves.axes(path, leaf, stacked)
  if axes < 3 or names[-1:] != ['kernel'] or len(names) < 2:
    return None
  if _INTO_HEADS.match(names[-2]):
    return Numbers(-3, (-2, -1))
  if _OUT_OF_HEADS.match(names[-2]):
    return Numbers((-3, -2), -1)
  if _CONVOLUTION.search(names[-2]):
    return Numbers(tuple(range(-axes, -1)), -1)
  if _GENERAL.match(names[-2]):
    return Numbers(-axes, tuple(range(1 - axes, 0)))
  return None


def dimension_numbers(
    params: PyTree, *, stacked: leaves.Stacked = None
) -> PyTree:
  """The dimension numbers of every leaf, by its shape and its name.

  Args:
    params: the parameters.
    stacked: see `matrix_labels`.

  Returns:
    A tree of `optax.contrib.MuonDimensionNumbers`, with None for a leaf that is
    no matrix. A `kernel` of Flax's attention has heads and head_dim together on
    one side, that of a convolution window and input channels, and that of a
    `DenseGeneral` all but the first axis are its out, with a warning, as other
    axes can be; every other leaf [..., in, out] is a stack of matrices. Change
    it and give it back as the `weight_dimension_numbers` of an optimizer.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _numbers(path, leaf, stacked)
      if _is_matrix(path, leaf, stacked)
      else None,
      params,
  )


def _numbers(path, leaf: Array, stacked: leaves.Stacked) -> Numbers:
  return _of_flax(path, leaf, stacked) or STACK


def _named_otherwise(names: Sequence[str]) -> bool:
  return any(NOT_A_MAP.search(name) for name in names[-2:])


def _is_matrix(path, leaf: Array, stacked: leaves.Stacked) -> bool:
  names = leaves.keys(path)
  if _named_otherwise(names):
    return False
  axes = leaves.axes(path, leaf, stacked)
  if any(_CONVOLUTION.search(name) for name in names[-2:]):
    # Of one channel each, [..., window, channels], it maps none to another.
    return axes >= 3 and jnp.shape(leaf)[-2] > 1
  return axes >= 2


def matrix_labels(
    params: PyTree, *, stacked: leaves.Stacked = None
) -> PyTree:
  """Labels every leaf 'matrix' or 'other', by its shape and its name.

  A matrix maps features to features: it has at least two axes beside that of
  the layers, and neither it nor the module that owns it is called an embedding,
  a head, a norm, a scale, a bias, a gate's rate or an adapter, nor is it a
  convolution of each channel by itself (one input channel: it could be).

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
    matrix = _is_matrix(path, leaf, stacked)
    _warn(path, leaf, stacked, matrix)
    return 'matrix' if matrix else 'other'

  return jax.tree_util.tree_map_with_path(label, params)


def _warn(path, leaf: Array, stacked: leaves.Stacked, matrix: bool) -> None:
  """Says where a leaf's name and shape can mean two things."""
  names, shape = leaves.keys(path), jnp.shape(leaf)
  name = f'{"/".join(names)!r} {shape}'
  axes = leaves.axes(path, leaf, stacked)
  flat = axes == 1 and len(shape) == 2
  if stacked is None and flat and not _named_otherwise(names):
    warnings.warn(
        f'{name} is taken for vectors, one for each layer, as it is below'
        " `layers`; say stacked=() if it is a matrix, stacked='layers' if it is"
        ' not, or give a label_fn',
        stacklevel=2,
    )
  many = axes >= 3 and names[-1:] == ['kernel']
  known = _of_flax(path, leaf, stacked) and not _GENERAL.match(names[-2])
  if matrix and many and not known:
    numbers = _numbers(path, leaf, stacked)
    warnings.warn(
        f'{name} is taken for {_matrices(leaf, numbers)}; if other axes are its'
        ' in and out, say so in weight_dimension_numbers',
        stacklevel=2,
    )


def numbers_for(
    tree: PyTree, given: NumbersOf, stacked: leaves.Stacked = None
) -> PyTree:
  """A leaf's numbers for every leaf, from those given, or by their names.

  Raises:
    ValueError: a leaf is given none, or axes that are not all its own.
  """
  if given is None:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _numbers(path, leaf, stacked), tree
    )
  numbers = _spread(given, tree)
  for (path, leaf), one in zip(
      jax.tree_util.tree_leaves_with_path(tree), _leaves(numbers, tree)
  ):
    _check(path, leaf, one)
  return numbers


def _is_numbers(x: Any) -> bool:
  return x is None or isinstance(x, Numbers)


def _spread(given: NumbersOf, tree: PyTree) -> PyTree:
  given = given(tree) if callable(given) else given
  return jax.tree.map(
      lambda one, below: jax.tree.map(lambda _: one, below),
      given, tree, is_leaf=_is_numbers,
  )


def _leaves(numbers: PyTree, tree: PyTree) -> list[Numbers | None]:
  """One for each leaf of `tree`, which None in a tree is not."""
  return jax.tree.structure(tree).flatten_up_to(numbers)


def _check(path, leaf: Array, numbers: Numbers | None) -> None:
  name, ndim = '/'.join(leaves.keys(path)), jnp.ndim(leaf)
  if numbers is None:
    raise ValueError(
        f'leaf {name!r} has no dimension numbers; give it another optimizer'
        ' with optax.partition'
    )
  axes = [*axes_of(numbers.reduction_axis), *axes_of(numbers.output_axis)]
  valid = all(isinstance(i, int) and -ndim <= i < ndim for i in axes)
  if not valid or len({i % ndim for i in axes}) < len(axes):
    raise ValueError(
        f'dimension numbers of leaf {name!r} must be different axes of its'
        f' shape {jnp.shape(leaf)}; got {numbers}'
    )


def require(params: PyTree, rule: str) -> None:
  """Raises ValueError, with the leaf's name, unless all leaves are matrices."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if jnp.ndim(leaf) < 2:
      raise ValueError(
          f'{rule} needs matrices [..., M, N]; leaf'
          f' {"/".join(leaves.keys(path))!r} has shape {jnp.shape(leaf)}; give'
          ' such leaves another optimizer with optax.partition'
      )


def labeller(
    label_fn: LabelFn | None,
    stacked: leaves.Stacked,
    given: NumbersOf = None,
) -> LabelFn:
  """`label_fn`, or labels by the numbers given, or `matrix_labels`.

  Raises:
    ValueError: both say which leaves are matrices.
  """
  if given is None:
    return label_fn or functools.partial(matrix_labels, stacked=stacked)
  if label_fn is not None:
    raise ValueError(
        'give label_fn or weight_dimension_numbers, not both: a leaf whose'
        " numbers are None is 'other'"
    )

  def labels(params):
    numbers = _leaves(_spread(given, params), params)
    return jax.tree.structure(params).unflatten(
        'other' if one is None else 'matrix' for one in numbers
    )

  return labels


def describe(
    params: PyTree,
    *,
    label_fn: LabelFn | None = None,
    stacked: leaves.Stacked = None,
    weight_dimension_numbers: NumbersOf = None,
) -> str:
  """A table of what an optimizer takes each leaf for: a line a leaf.

  Args:
    params: the parameters, or their shapes.
    label_fn: as that of `muon`, `adamuon`, `m3` and `dgd`.
    stacked: see `matrix_labels`.
    weight_dimension_numbers: see `dimension_numbers`.

  Returns:
    Name, shape, the matrices that are in it, and the rule that takes it:
    'matrix', or 'other', which is AdamW or what else is beside it.

  Example:
    >>> import jax.numpy as jnp
    >>> from hope_jax import optim
    >>> print(optim.describe({
    ...     'query': {'kernel': jnp.ones((8, 2, 4)), 'bias': jnp.ones((2, 4))},
    ...     'up': jnp.ones((3, 8, 16)),
    ... }))
    query/bias    (2, 4)                   other
    query/kernel  (8, 2, 4)   [8, 8]       matrix
    up            (3, 8, 16)  3 x [8, 16]  matrix
  """
  given = weight_dimension_numbers
  labels = labeller(label_fn, stacked, given)(params)
  if given is None:
    numbers = numbers_for(params, None, stacked)
  else:
    numbers = _spread(given, params)  # None among them is 'other'
  rows = [
      (
          '/'.join(leaves.keys(path)),
          str(jnp.shape(leaf)),
          _matrices(leaf, one or STACK) if label == 'matrix' else '',
          label,
      )
      for (path, leaf), label, one in zip(
          jax.tree_util.tree_leaves_with_path(params),
          jax.tree.leaves(labels), _leaves(numbers, params),
      )
  ]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
      '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
      for row in rows
  )


def _matrices(leaf: Array, numbers: Numbers) -> str:
  shape = jnp.shape(leaf)
  count = math.prod(shape[i] for i in sides(numbers, len(shape))[0])
  return (f'{count} x ' if count > 1 else '') + str(list(size(shape, numbers)))


def beside_adamw(
    direction: Callable[..., optax.GradientTransformation],
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    adam_learning_rate: optax.ScalarOrSchedule | None,
    label_fn: LabelFn | None,
    stacked: leaves.Stacked,
    weight_dimension_numbers: NumbersOf,
    **adam,
) -> optax.GradientTransformationExtraArgs:
  """A direction for matrices, AdamW for everything else.

  Args:
    direction: (weight_dimension_numbers) -> direction of descent of the leaves
      that are labelled 'matrix'.
    learning_rate: number or schedule.
    weight_decay: decoupled, on matrices.
    adam_learning_rate: of the other leaves; None: the same.
    label_fn: parameters -> a tree of 'matrix' and 'other'; None:
      `matrix_labels`.
    stacked: see there.
    weight_dimension_numbers: see `dimension_numbers`.
    **adam: further options of `optax.adamw`.

  Returns:
    A transformation.
  """
  given = weight_dimension_numbers
  labels = labeller(label_fn, stacked, given)
  if adam_learning_rate is None:
    adam_learning_rate = learning_rate
  if given is None:
    given = lambda tree: numbers_for(tree, None, stacked)
  matrices = optax.chain(
      direction(weight_dimension_numbers=given),
      optax.add_decayed_weights(weight_decay),
      optax.scale_by_learning_rate(learning_rate),
  )
  others = optax.adamw(
      adam_learning_rate, weight_decay=0.0, eps_root=precision.TINY, **adam
  )
  return leaves.partition({'matrix': matrices, 'other': others}, labels)
