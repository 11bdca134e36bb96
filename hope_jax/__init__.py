"""Nested Learning and Hope in JAX (arXiv 2512.24695).

The names below are imported when they are first asked for, so that
`from hope_jax import optim` brings in the optimizers and nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hope_jax import optim as optim
  from hope_jax.config import Config as Config
  from hope_jax.infer.session import Session as Session
  from hope_jax.kernels.dgd.api import dgd_recurrence as dgd_recurrence
  from hope_jax.models.factory import language_model as build_model
  from hope_jax.run import load as load
  from hope_jax.run import train as train

# The one place of the version; setup.py reads it here.
__version__ = '0.1.0'

_LAZY = {
    'Config': 'hope_jax.config:Config',
    'Session': 'hope_jax.infer.session:Session',
    'build_model': 'hope_jax.models.factory:language_model',
    'dgd_recurrence': 'hope_jax.kernels.dgd.api:dgd_recurrence',
    'load': 'hope_jax.run:load',
    'optim': 'hope_jax.optim',
    # The package hope_jax.train, which can be called: see its __init__.py.
    'train': 'hope_jax.train',
}
__all__ = (
    'Config', 'Session', '__version__', 'build_model', 'dgd_recurrence', 'load',
    'optim', 'train',
)


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, attribute = _LAZY[name].partition(':')
  value = importlib.import_module(module)
  value = getattr(value, attribute) if attribute else value
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
