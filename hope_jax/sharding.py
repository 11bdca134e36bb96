"""Where every array lives: logical axes -> mesh axes, and nothing else.

A model names the axes of its arrays by meaning ('embed', 'heads', ...). One
table, `ShardingRules`, says over which axes of the mesh each meaning is spread.
Code that computes never mentions devices: the same train step runs on one
device, on eight, or on a pod.

The mesh has three axes, and any of them may have size one:

| axis   | splits                                                            |
|--------|-------------------------------------------------------------------|
| data   | the batch; parameters are copied                                  |
| fsdp   | the batch, and each parameter along its 'embed' axis              |
| tensor | heads, hidden units and vocabulary                                |

Parameters carry their names from initialisation; the optimizer's state takes
the placement of the parameter it belongs to; batches are split along their
first axis; states and activations go where the model's `constrain` puts them.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any
import warnings

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from hope_jax.config import ConfigError, MeshConfig
from hope_jax.types import Array, PyTree

AXES = ('data', 'fsdp', 'tensor')


@dataclasses.dataclass(frozen=True)
class ShardingRules:
  """For each logical axis the mesh axis, or axes, that it is spread over.

  Activations share 'batch' with data and fsdp, so their feature axis is named
  None (or 'heads', 'mlp', 'vocab'), never 'embed': one mesh axis can split only
  one axis of an array.
  """

  batch: tuple[str, ...] = ('data', 'fsdp')
  embed: tuple[str, ...] = ('fsdp',)
  heads: tuple[str, ...] = ('tensor',)
  mlp: tuple[str, ...] = ('tensor',)
  vocab: tuple[str, ...] = ('tensor',)
  head_dim: tuple[str, ...] = ()
  layers: tuple[str, ...] = ()
  time: tuple[str, ...] = ()
  memory: tuple[str, ...] = ()

  def mesh_axes(self, names: tuple[str | None, ...]) -> list[tuple[str, ...]]:
    """Returns the mesh axes of each named axis of one array.

    Args:
      names: the logical name of each axis of the array; None is never split.

    Returns:
      A tuple of mesh axes for each axis, empty where it is not split.

    Raises:
      ValueError: a name is not in the table, or two axes of the array want the
        same mesh axis.
    """
    known = [field.name for field in dataclasses.fields(self)]
    taken = {}
    result = []
    for name in names:
      if name is not None and name not in known:
        raise ValueError(
            f'unknown logical axis {name!r} in {names}; known:'
            f' {", ".join(known)} and None'
        )
      axes = () if name is None else getattr(self, name)
      for axis in axes:
        if axis in taken:
          raise ValueError(
              f'logical axes {taken[axis]!r} and {name!r} of {names} are both'
              f' spread over mesh axis {axis!r}; name one of them None'
          )
        taken[axis] = name
      result.append(axes)
    return result


RULES = ShardingRules()


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
  """Returns a mesh with the axes 'data', 'fsdp' and 'tensor'.

  Args:
    config: devices along each axis. Where they multiply to fewer than there
      are, the first ones are used.

  Raises:
    ConfigError: the sizes ask for more devices than there are, or -1 does not
      come out whole.
  """
  devices = jax.devices()
  sizes = [config.data, config.fsdp, config.tensor]
  asked = f'mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}'
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes:
    left = len(devices) // fixed
    if left * fixed != len(devices):
      raise ConfigError(
          f'{asked}: the fixed sizes multiply to {fixed}, which does not divide'
          f' {len(devices)} devices'
      )
    sizes[sizes.index(-1)] = left
  total = math.prod(sizes)
  if total > len(devices):
    raise ConfigError(f'{asked} needs {total} devices; found {len(devices)}')
  # Auto: the compiler propagates shardings. Newer JAX defaults to Explicit.
  return jax.make_mesh(
      tuple(sizes),
      AXES,
      axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
      devices=devices[:total],
  )


def partition_spec(
    mesh,
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    rules: ShardingRules = RULES,
) -> PartitionSpec:
  """Returns how an array of this shape, with axes of these names, is split.

  An axis whose length the mesh does not divide stays whole, with a warning.

  Args:
    mesh: the mesh, concrete or abstract.
    shape: the shape of the array.
    names: the logical name of each of its axes.
    rules: the table.

  Raises:
    ValueError: as many names as axes are needed; and see `mesh_axes`.
  """
  if len(shape) != len(names):
    raise ValueError(
        f'an array of shape {shape} needs {len(shape)} axis names; got {names}'
    )
  spec = []
  for size, name, axes in zip(shape, names, rules.mesh_axes(names)):
    # A mesh of the caller's own may lack an axis; inside a shard_map an axis is
    # Manual, and its arrays are split already.
    axes = tuple(
        axis
        for axis, kind in zip(mesh.axis_names, mesh.axis_types)
        if axis in axes and kind == jax.sharding.AxisType.Auto
    )
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
      # Python shows a warning of the same text at the same place once.
      warnings.warn(
          f'logical axis {name!r} of length {size} is not divisible by the'
          f' {parts} devices of mesh axes {axes}; it is not split',
          stacklevel=2,
      )
      axes = ()
    spec.append(axes or None)
  return PartitionSpec(*spec)


def constrain(x: Array, *names: str | None) -> Array:
  """Asks for `x` to be split by the names of its axes; without a mesh, `x`.

  Args:
    x: an array inside a model, of any shape.
    *names: the logical name of each axis, or None.

  Raises:
    ValueError: an unknown name, a collision, or too few names; also without a
      mesh, so that one device is enough to find the mistake.
  """
  RULES.mesh_axes(names)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = partition_spec(mesh, x.shape, names)
  return jax.lax.with_sharding_constraint(x, spec)


def current_spec(
    shape: tuple[int, ...], *names: str | None
) -> PartitionSpec | None:
  """How the mesh that is set splits an array; None where no mesh is.

  For code that has to split its work itself, as kernels do.

  Args:
    shape: the shape of the array.
    *names: the logical name of each of its axes, or None.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else partition_spec(mesh, shape, names)


def _is_boxed(leaf: Any) -> bool:
  return hasattr(leaf, 'names') and hasattr(leaf, 'value')


def unbox(params: PyTree) -> PyTree:
  """Returns parameters without the boxes that carry their axis names."""
  return jax.tree.map(
      lambda leaf: leaf.value if _is_boxed(leaf) else leaf,
      params,
      is_leaf=_is_boxed,
  )


def param_shardings(mesh: jax.sharding.Mesh, boxed: PyTree) -> PyTree:
  """Returns a NamedSharding for each parameter.

  Args:
    mesh: the mesh.
    boxed: parameters (or their shapes) in boxes with `names` and `value`; a
      parameter without a box is copied to every device.

  Returns:
    A tree of the structure of `unbox(boxed)`.
  """

  def named(leaf):
    names = leaf.names if _is_boxed(leaf) else (None,) * leaf.ndim
    value = leaf.value if _is_boxed(leaf) else leaf
    return NamedSharding(mesh, partition_spec(mesh, value.shape, names))

  return jax.tree.map(named, boxed, is_leaf=_is_boxed)


def _keys(path) -> tuple[str, ...]:
  """The names along a path, alike for dicts, sequences and named tuples."""
  return tuple(
      str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
      for k in path
  )


def optimizer_shardings(
    mesh: jax.sharding.Mesh, opt_state: PyTree, params: PyTree
) -> PyTree:
  """Returns a sharding for each array of an optimizer's state.

  A leaf whose path ends in the path of a parameter belongs to it. If its last
  axes are those of the parameter it is split alike, axes in front of them
  whole; anything else (a counter, a factored moment) is copied. Parameters in
  their boxes, given to the optimizer's `init`, would hand their names to arrays
  of other axes too: to the hidden layers of `optim.deep_momentum`.

  Args:
    mesh: the mesh.
    opt_state: the state, or its shapes.
    params: the parameters, or their shapes, without boxes, each with its
      sharding.
  """
  owners = {
      _keys(path): (leaf.shape, leaf.sharding.spec)
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def alike(path, leaf):
    keys = _keys(path)
    for start in range(len(keys)):
      shape, spec = owners.get(keys[start:], (None, None))
      if shape is not None and leaf.shape[leaf.ndim - len(shape):] == shape:
        whole = (None,) * (leaf.ndim - len(shape))
        return NamedSharding(mesh, PartitionSpec(*whole, *spec))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(alike, opt_state)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def initialise(mesh: jax.sharding.Mesh, init: Callable[[], PyTree]) -> PyTree:
  """Runs `init` so that every array is split from its birth.

  Args:
    mesh: the mesh.
    init: returns parameters in boxes with their axis names.

  Returns:
    The parameters without boxes. No device ever holds one whole that the table
    says to split.
  """
  shardings = param_shardings(mesh, jax.eval_shape(init))
  # It runs once, for milliseconds; on a CPU, LLVM would spend ten seconds on
  # optimising the random bits of a small Hope.
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  return jax.jit(
      lambda: unbox(init()), out_shardings=shardings, compiler_options=options
  )()


def put_batch(batch: PyTree) -> PyTree:
  """Moves a batch to the devices of the current mesh, split along axis 0.

  Args:
    batch: arrays [B, ...]; with several processes, this process's rows.

  Returns:
    Arrays of the whole batch; without a mesh, arrays on the default device.

  Raises:
    ValueError: several processes, and rows that the mesh does not divide.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jax.tree.map(jax.numpy.asarray, batch)

  def put(x):
    x = np.asarray(x)
    rows = (x.shape[0] * jax.process_count(),) + x.shape[1:]
    names = ('batch',) + (None,) * (x.ndim - 1)
    sharding = NamedSharding(mesh, partition_spec(mesh, rows, names))
    if jax.process_count() > 1 and sharding.is_fully_replicated:
      # Processes hold different rows, which a whole copy cannot stand for.
      raise ValueError(f'the mesh {mesh.shape} cannot split {rows[0]} rows')
    return jax.make_array_from_process_local_data(sharding, x)

  return jax.tree.map(put, batch)
