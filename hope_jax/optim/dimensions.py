"""The axes of a leaf: in, out and batch; work on its matrices as [in, out]."""

from collections.abc import Callable, Sequence
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from hope_jax.types import Array, PyTree

Numbers = optax.contrib.MuonDimensionNumbers
STACK = Numbers(-2, -1)


def axes_of(axes: int | Sequence[int]) -> tuple[int, ...]:
  """One side's axes, of which one may stand alone."""
  return (axes,) if isinstance(axes, int) else tuple(axes)


def sides(numbers: Numbers, ndim: int) -> tuple[tuple[int, ...], ...]:
  """A leaf's batch, in and out axes, none negative; a vector's is in."""
  if ndim < 2:
    return (), tuple(range(ndim)), ()
  rows = tuple(i % ndim for i in axes_of(numbers.reduction_axis))
  columns = tuple(i % ndim for i in axes_of(numbers.output_axis))
  batch = tuple(i for i in range(ndim) if i not in (*rows, *columns))
  return batch, rows, columns


def size(shape: Sequence[int], numbers: Numbers) -> tuple[int, int]:
  """The height and width of each of a leaf's matrices."""
  _, rows, columns = sides(numbers, len(shape))
  product = lambda axes: math.prod(shape[i] for i in axes)
  return product(rows), product(columns)


def on_matrices(
    fn: Callable, numbers: Numbers, *likes: Array, beside: Sequence[Array] = ()
) -> tuple[PyTree, PyTree]:
  """fn on whole matrices [..., in, out], whatever the axes of the leaf.

  Products of matrices that are sharded in both axes have no one right sharding,
  so that with `AxisType.Explicit` JAX asks for it. Here the axes of a matrix
  are gathered first; batch axes stay as they are, and with automatic axes the
  compiler decides.

  Args:
    fn: (*matrices, *beside) -> (matrices, beside), trees of such arrays.
    numbers: of the leaf; a vector is a matrix [in, 1].
    *likes: the leaf, and others of its shape.
    beside: arrays [batch..., m, n] that belong to its matrices.

  Returns:
    What fn gives; matrices in the leaf's shape, and sharded like it; what is
    beside them like what was given in its place.
  """
  leaf = likes[0]
  batch, rows, columns = sides(numbers, leaf.ndim)
  order = (*batch, *rows, *columns)
  moved = tuple(leaf.shape[i] for i in order)
  flat = (*moved[: len(batch)], *size(leaf.shape, numbers))
  back = sorted(range(leaf.ndim), key=order.__getitem__)
  split = jax.typeof(leaf).sharding
  spec = (*split.spec, *(None,) * (leaf.ndim - len(split.spec)))
  whole = tuple(s if i in batch else None for i, s in enumerate(spec))
  stack = (*(spec[i] for i in batch), None, None)

  def into(x):
    return jnp.transpose(_reshard(x, split, whole), order).reshape(flat)

  def out(y):
    y = jnp.transpose(y.reshape(moved), back)
    return _reshard(y, split, spec)

  whole_beside = [_reshard(y, split, stack) for y in beside]
  matrices, others = fn(*map(into, likes), *whole_beside)
  if beside:
    others = tuple(map(alike, others, beside))
  return jax.tree.map(out, matrices), others


def split_like(
    x: Array, leaf: Array, numbers: Numbers, side: Literal['in', 'out']
) -> Array:
  """x [batch..., m, n], where explicit, sharded like one side of the leaf.

  Its m is the leaf's in, or its n the leaf's out. Of several axes of a side the
  first one is split, or none.
  """
  split = jax.typeof(leaf).sharding
  spec = (*split.spec, *(None,) * (leaf.ndim - len(split.spec)))
  batch, rows, columns = sides(numbers, leaf.ndim)
  first = lambda axes: spec[axes[0]] if axes else None  # a vector has one side
  ends = (first(rows), None) if side == 'in' else (None, first(columns))
  return _reshard(x, split, (*(spec[i] for i in batch), *ends))


def _reshard(x: Array, sharding: Any, spec: Sequence[Any]) -> Array:
  """x sharded so, where the axes of the mesh are explicit."""
  kinds = getattr(sharding.mesh, 'axis_types', ())
  if jax.sharding.AxisType.Explicit not in kinds:
    return x
  wanted = jax.sharding.PartitionSpec(*spec)
  return jax.sharding.reshard(
      x, jax.sharding.NamedSharding(sharding.mesh, wanted)
  )


def alike(tree: PyTree, like: PyTree) -> PyTree:
  """The tree in the dtypes of another, and, where explicit, its shardings.

  Two branches of a `lax.cond` must agree in both.
  """

  def turn(x, y):
    split = jax.typeof(y).sharding
    return _reshard(jnp.asarray(x, jnp.result_type(y)), split, split.spec)

  return jax.tree.map(turn, tree, like)


def with_rms(d: Array, rms: float, numbers: Numbers | None) -> Array:
  """Each matrix of d, or all of it, with this root mean square; zero stays."""
  axes = None
  if numbers is not None:
    _, rows, columns = sides(numbers, d.ndim)
    axes = (*rows, *columns)
  square = jnp.mean(d * d, axis=axes, keepdims=True)
  return d * jnp.where(
      square == 0, 0, rms / jnp.sqrt(jnp.where(square == 0, 1, square))
  )
