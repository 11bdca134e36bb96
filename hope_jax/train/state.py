"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax import sharding
from hope_jax.config import ConfigError
from hope_jax.types import Array, PyTree, UnsupportedError


class TrainState(NamedTuple):
  """Everything that decides the steps to come, apart from the data."""

  step: Array  # int32 [], steps made
  params: PyTree
  opt_state: PyTree
  rng: Array  # a key; step t uses fold_in(rng, t)


def param_shapes(
    model, sequence_length: int, mesh: jax.sharding.Mesh
) -> PyTree:
  """Returns shape, dtype and sharding of each parameter, without making any.

  Args:
    model: a Flax module; `init(rng, tokens)` gives boxed parameters.
    sequence_length: T of the tokens that `init` is traced with.
    mesh: the devices.

  Returns:
    A tree of jax.ShapeDtypeStruct with shardings.

  Raises:
    ConfigError: a choice of the model cannot run here.
  """
  try:
    boxed = jax.eval_shape(
        lambda: _init_params(model, sequence_length, jax.random.key(0))
    )
  except UnsupportedError as error:
    raise ConfigError(str(error)) from error
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      sharding.unbox(boxed),
      sharding.param_shardings(mesh, boxed),
  )


def _init_params(model, sequence_length: int, key: Array) -> PyTree:
  tokens = jnp.zeros((1, sequence_length), jnp.int32)
  return model.init(key, tokens)['params']


def state_shapes(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> TrainState:
  """Returns shape, dtype and sharding of all arrays of a run, making none.

  Args:
    params: those of the parameters, from `param_shapes`.
    optimizer: the outer optimizer.
    mesh: the devices.

  Returns:
    A state of jax.ShapeDtypeStruct with shardings.
  """
  opt_state = jax.eval_shape(optimizer.init, params)
  # What stands for an array here has another type, hence Any.
  step: Any = jax.ShapeDtypeStruct((), jnp.int32)
  whole: Any = sharding.replicated(mesh)
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      TrainState(
          step,
          params,
          opt_state,
          jax.eval_shape(jax.random.key, 0),
      ),
      TrainState(
          whole,
          jax.tree.map(lambda p: p.sharding, params),
          sharding.optimizer_shardings(mesh, opt_state, params),
          whole,
      ),
  )


def create(
    model,
    optimizer: optax.GradientTransformation,
    sequence_length: int,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> TrainState:
  """Initialises a run, every array in its place on the mesh from the start.

  Args:
    model: a Flax module; `init(rng, tokens)` gives boxed parameters.
    optimizer: the outer optimizer.
    sequence_length: T of the tokens that `init` is traced with.
    seed: decides the parameters and all later random numbers.
    mesh: the devices.

  Returns:
    The state at step 0. The same on any mesh.
  """
  init_key, step_key = jax.random.split(jax.random.key(seed))
  params = sharding.initialise(
      mesh, lambda: _init_params(model, sequence_length, init_key)
  )
  shardings = sharding.optimizer_shardings(
      mesh, jax.eval_shape(optimizer.init, params), params
  )
  opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
  whole = sharding.replicated(mesh)
  step = jax.device_put(jnp.zeros([], jnp.int32), whole)
  return TrainState(step, params, opt_state, jax.device_put(step_key, whole))
