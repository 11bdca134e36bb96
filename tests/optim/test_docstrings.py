"""What every optimizer promises a reader: one form, and examples that run."""

import doctest
import importlib
import inspect
import pathlib

import pytest

from hope_jax import optim

ALIASES = [
    name.removeprefix('scale_by_')
    for name in optim.__all__
    if name.startswith('scale_by_')
]
FOLDER = pathlib.Path(optim.__file__).parent
MODULES = sorted(p.stem for p in FOLDER.glob('*.py') if p.stem != '__init__')


@pytest.mark.parametrize('name', ALIASES)
def test_an_optimizer_has_the_form_of_all(name):
  """`x(learning_rate, *, ...)` over `scale_by_x(*, ...)`, with sources."""
  alias = getattr(optim, name)
  first, *options = inspect.signature(alias).parameters.values()
  assert first.name == 'learning_rate'
  assert all(p.kind == p.KEYWORD_ONLY for p in options), name
  assert 'Example:' in alias.__doc__
  scale = getattr(optim, f'scale_by_{name}')
  described = inspect.getmodule(scale).__doc__ + scale.__doc__
  assert 'Eq.' in described and 'References:' in scale.__doc__
  options = inspect.signature(scale).parameters.values()
  assert all(p.kind == p.KEYWORD_ONLY for p in options), scale.__name__


@pytest.mark.parametrize('module', MODULES)
def test_examples_run(module):
  """If it fails, the first lines that a user copies do not work."""
  found = doctest.testmod(importlib.import_module(f'hope_jax.optim.{module}'))
  assert not found.failed
