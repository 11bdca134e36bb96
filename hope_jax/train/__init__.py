"""Training: the state, one pure step, the loop, checkpoints, metrics.

`hope_jax.train` is this package and, called, `hope_jax.run.train`: a name that
is both has to be a module that can be called.
"""

import importlib
import sys
import types


class _Train(types.ModuleType):
  """The package; calling it trains the model of a configuration."""

  def __call__(self, config, **options):
    # By name: run.py stands above this folder.
    return importlib.import_module('hope_jax.run').train(config, **options)


sys.modules[__name__].__class__ = _Train
