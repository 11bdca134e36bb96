"""The precision of a float32 model's products, on devices that have several."""

from collections.abc import Callable
import contextlib
import functools
from typing import Any

import jax


def products(config: Any) -> contextlib.AbstractContextManager:
  """Inside, products that say no precision of their own have the config's.

  Products of bfloat16 are what they are: their operands have no more digits.

  Args:
    config: has `dtype` and `precision`.
  """
  if config.dtype == 'float32':
    return jax.default_matmul_precision(config.precision)
  return contextlib.nullcontext()


def at_precision(call: Callable) -> Callable:
  """A module's method, its products and their derivatives at `products`."""

  @functools.wraps(call)
  def within(self, *args, **kwargs):
    with products(self.config):
      return call(self, *args, **kwargs)

  return within
