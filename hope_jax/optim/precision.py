"""Numbers of an optimizer: float32 or wider, whatever the parameters are.

A memory of many gradients cannot be held in their dtype where that is narrow:
in bfloat16 256 + 1 is 256 and 0.999 is 1. So state and arithmetic are those of
float32 parameters, or of wider ones, and only an update is rounded.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hope_jax.types import Array, PyTree

# Below every second moment that tells in float32, and a normal number: under a
# root it makes the derivative at zero finite, and changes no value.
TINY = 1e-37


def root(x: Array) -> Array:
  """sqrt(x) of x >= 0, whose derivative at 0 is 0, not infinite.

  Who differentiates through a step, as in meta-learning, would else have NaN
  from every parameter whose gradient is zero.
  """
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0 * x)


def _wide(dtype: Any) -> Any:
  dtype = jnp.result_type(dtype)
  inexact = jnp.issubdtype(dtype, jnp.inexact)
  return jnp.promote_types(dtype, jnp.float32) if inexact else dtype


def _cast(tree: PyTree, like: PyTree, of: Callable[[Any], Any]) -> PyTree:
  """The leaves as arrays of the dtypes `of` those of `like`; None stays."""

  def cast(x, y):
    return None if x is None else jnp.asarray(x, of(jnp.result_type(y)))

  return jax.tree.map(cast, tree, like, is_leaf=lambda x: x is None)


def in_float32(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """`tx` as if parameters and gradients were float32, or wider where they are.

  Args:
    tx: any optax transformation.

  Returns:
    A transformation whose updates have the dtypes of the parameters, or of the
    gradients where no parameters are given. Its arithmetic is of one dtype, so
    that it is right under every `jax.numpy_dtype_promotion`.
  """
  tx = optax.with_extra_args_support(tx)
  standard = functools.partial(jax.numpy_dtype_promotion, 'standard')

  def init(params):
    with standard():
      return tx.init(_cast(params, params, _wide))

  def update(updates, state, params=None, **extra):
    like = updates if params is None else params
    with standard():
      wide = None if params is None else _cast(params, params, _wide)
      updates, state = tx.update(
          _cast(updates, like, _wide), state, wide, **extra
      )
      return _cast(updates, like, lambda dtype: dtype), state

  return optax.GradientTransformationExtraArgs(init, update)


def keeps_float32(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformationExtraArgs]:
  """A factory of transformations that are `in_float32`, and so its numbers.

  Raises:
    ValueError: a number of the factory is an array narrower than float32, as
      `optax.inject_hyperparams` makes them of narrow parameters. A learning
      rate may be.
  """
  signature = inspect.signature(factory)

  @functools.wraps(factory)
  def make(*args, **options):
    for name, value in signature.bind(*args, **options).arguments.items():
      _require_wide(name, value)
    return in_float32(factory(*args, **options))

  return make


def _require_wide(name: str, value: Any) -> None:
  dtype = getattr(value, 'dtype', None)
  if dtype is None or name.endswith('learning_rate'):
    return
  if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
    raise ValueError(
        f'{name} is {dtype}, which rounds 0.999 to 1;'
        ' optax.inject_hyperparams needs hyperparam_dtype=jnp.float32 where'
        ' parameters are narrower than float32'
    )
