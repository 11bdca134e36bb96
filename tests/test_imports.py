"""The import arrows of the package: who may use whom, and who may use what.

The arrows are what lets a reader understand one folder at a time and lets a
library be swapped in one place. They are checked on the syntax trees, so that
an import inside a function counts too.
"""

import ast
import collections
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A layer imports from itself and from layers further down.
LAYERS = (
    {'main'},
    {'commands', 'plan'},
    {'studies'},
    {'run'},
    {'evals', 'infer', 'train', 'report', 'convert'},
    {'models', 'optim', 'data', 'tasks', 'sharding', 'distributed'},
    {'nested'},
    {'kernels'},
    {'interrupts'},
    {'types', 'files', 'console'},
)
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}

# The configuration stands beside the layers: these read it, kernels and nested
# take plain arguments.
READS_CONFIG = (
    'main.py', 'commands.py', 'run.py', 'plan.py', 'studies/', 'evals/',
    'infer/', 'train/', 'convert/', 'models/', 'optim/factory.py',
    'optim/registry.py', 'data/', 'sharding.py', 'config/',
)

# Libraries that live in one place only, by the path below hope_jax.
ONLY_IN = {
    'flax': 'models/',
    'grain': 'data/',
    'jinja2': 'report/',
    'matplotlib': 'report/',
    'orbax': 'train/checkpoint.py',
}
# Libraries that must not come in at all: deprecated, or heavy for what they do.
BANNED = {'chex', 'clu', 'tensorflow', 'torch'}
# What these folders may import from outside the package: those of pure maths,
# and the one of pure text and pictures.
PURE = {
    'kernels': {'jax', 'numpy'},
    'nested': {'jax', 'numpy'},
    'optim': {'jax', 'numpy', 'optax'},
    'report': {'jinja2', 'matplotlib', 'numpy'},
}
# What an evaluation has no use for: it turns a model into numbers.
TRAINS = ('hope_jax.train.loop', 'hope_jax.train.setup', 'hope_jax.train.step',
          'hope_jax.optim')
STANDARD = {
    '__future__', 'collections', 'dataclasses', 'difflib', 'enum', 'functools',
    'inspect', 'itertools', 'math', 'operator', 're', 'types', 'typing',
    'warnings',
}


def imported_modules(source: str, package: str) -> list[tuple[int, str]]:
  """Returns (line, absolute dotted name) of everything `source` imports.

  `from a import b` gives `a.b`, as b may be a module; what that name is does
  not matter to the rules, which look at its first two parts.
  """
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parents = package.split('.')
        parents = parents[: len(parents) - node.level + 1]
        base = '.'.join(parents + ([base] if base else []))
      found += [(node.lineno, f'{base}.{alias.name}') for alias in node.names]
  return found


def violations(root: pathlib.Path) -> list[str]:
  """Returns one line for each import below `root` that breaks a rule."""
  wrong = []
  for path in sorted(root.glob('hope_jax/**/*.py')):
    inside = path.relative_to(root / 'hope_jax')
    owner = inside.parts[0].removesuffix('.py')
    package = '.'.join(('hope_jax', *inside.parts[:-1]))
    if owner != '__init__' and owner not in DEPTH and owner != 'config':
      wrong.append(f'{inside}: {owner} has no place in the layers')
      continue
    for line, name in imported_modules(path.read_text(), package):
      top, *rest = name.split('.')
      if top == 'hope_jax':
        fault = _fault_inside(
            owner, inside.as_posix(), rest[0] if rest else '', name
        )
      else:
        fault = _fault_outside(owner, inside.as_posix(), top)
      if fault:
        wrong.append(f'{inside}:{line}: imports {name}; {fault}')
  for path in sorted(root.glob('experiments/**/*.py')):
    for line, name in imported_modules(path.read_text(), 'experiments'):
      if name.split('.')[0] == 'hope_jax':
        wrong.append(
            f'experiments/{path.name}:{line}: imports {name}; experiments are'
            ' data only'
        )
  return wrong


def _fault_inside(owner: str, inside: str, target: str, name: str) -> str:
  """Returns what is wrong with `inside` importing `name`, or ''."""
  if inside == '__init__.py':
    return ''  # The face: it names what others have, and imports it when asked.
  if target == 'config':
    allowed = inside.startswith(READS_CONFIG)
    return '' if allowed else f'{owner} takes plain arguments, never a config'
  if owner == 'config':
    return 'config imports nothing of the package'
  if owner == 'main' and target not in ('console', 'interrupts'):
    return 'main names its commands, so that --help imports nothing'
  if owner == 'report' and target != 'report':
    return 'report takes numbers, and imports nothing of the package'
  if owner == 'evals' and name.startswith(TRAINS):
    return 'evals measure, and train nothing'
  if target not in DEPTH:
    return f'{target!r} has no place in the layers'
  if DEPTH[target] < DEPTH[owner]:
    return f'{target} stands above {owner}'
  # Neighbours of one layer may meet; `cycles` sees that they do not embrace.
  return ''


def _fault_outside(owner: str, inside: str, library: str) -> str:
  """Returns what is wrong with `inside` importing `library`, or ''."""
  if library in BANNED:
    return f'{library} is not used in this project'
  home = ONLY_IN.get(library)
  if home and not inside.startswith(home):
    return f'{library} is imported in {home} alone'
  allowed = PURE.get(owner)
  standard = sys.stdlib_module_names if owner == 'report' else STANDARD
  if allowed and library not in allowed | standard:
    return f'{owner} imports {", ".join(sorted(allowed))} only'
  return ''


def cycles(root: pathlib.Path) -> list[str]:
  """Returns the parts of the package that import each other, as 'a <-> b'."""
  uses = collections.defaultdict(set)
  for path in root.glob('hope_jax/**/*.py'):
    inside = path.relative_to(root / 'hope_jax')
    owner = inside.parts[0].removesuffix('.py')
    package = '.'.join(('hope_jax', *inside.parts[:-1]))
    for _, name in imported_modules(path.read_text(), package):
      top, *rest = name.split('.')
      if top == 'hope_jax' and rest and rest[0] != owner:
        uses[owner].add(rest[0])

  def reached(start: str) -> set[str]:
    seen, front = set(), [start]
    while front:
      for part in uses[front.pop()] - seen:
        seen.add(part)
        front.append(part)
    return seen

  parts = sorted(uses)
  return [
      f'{a} <-> {b}'
      for i, a in enumerate(parts)
      for b in parts[i + 1 :]
      if b in reached(a) and a in reached(b)
  ]


def test_imports_follow_the_arrows():
  """If it fails, a folder can no longer be read or replaced by itself."""
  assert not violations(ROOT)


def test_no_cycles():
  """If it fails, two parts of the package are one part with two names."""
  assert not cycles(ROOT)


@pytest.mark.parametrize(
    ('path', 'source', 'complaint'),
    [
        ('hope_jax/nested/a.py', 'from hope_jax.models import lm',
         'models stands above nested'),
        ('hope_jax/nested/a.py', 'from ..models import lm',
         'models stands above nested'),
        ('hope_jax/nested/a.py', 'def f():\n  import hope_jax.train.loop',
         'train stands above nested'),
        ('hope_jax/kernels/dgd/a.py', 'from hope_jax import config',
         'kernels takes plain arguments'),
        ('hope_jax/nested/a.py', 'from hope_jax.config import TitansConfig',
         'nested takes plain arguments'),
        ('hope_jax/optim/m3.py', 'from hope_jax import config',
         'optim takes plain arguments'),
        ('hope_jax/train/a.py', 'import flax.linen as nn',
         'flax is imported in models/ alone'),
        ('hope_jax/train/loop.py', 'import orbax.checkpoint as ocp',
         'orbax is imported in train/checkpoint.py alone'),
        ('hope_jax/evals/a.py', 'from grain import python',
         'grain is imported in data/ alone'),
        ('hope_jax/evals/a.py', 'from hope_jax.studies import runner',
         'studies stands above evals'),
        ('hope_jax/studies/a.py', 'import matplotlib',
         'matplotlib is imported in report/ alone'),
        ('hope_jax/optim/a.py', 'import ml_collections',
         'optim imports jax, numpy, optax only'),
        ('hope_jax/main.py', 'from hope_jax import run',
         'main names its commands'),
        ('hope_jax/report/a.py', 'from hope_jax import types',
         'report takes numbers'),
        ('hope_jax/report/a.py', 'import jax', 'report imports jinja2'),
        ('hope_jax/studies/a.py', 'import matplotlib.pyplot as plt',
         'matplotlib is imported in report/ alone'),
        ('hope_jax/evals/a.py', 'from hope_jax.train import loop',
         'evals measure, and train nothing'),
        ('hope_jax/evals/a.py', 'from hope_jax import optim',
         'evals measure, and train nothing'),
        ('hope_jax/run.py', 'from hope_jax.studies import runner',
         'studies stands above run'),
        ('hope_jax/config/a.py', 'from hope_jax import types',
         'config imports nothing'),
        ('hope_jax/data/a.py', 'import tensorflow as tf',
         'tensorflow is not used'),
        ('hope_jax/utils.py', '', 'utils has no place'),
        ('hope_jax/train/a.py', 'from hope_jax import helpers',
         "'helpers' has no place"),
        ('experiments/a.py', 'from hope_jax import config',
         'experiments are data only'),
    ],
)
def test_a_violation_is_found(tmp_path, path, source, complaint):
  """If it fails, the rule exists on paper only: a breach would pass."""
  file = tmp_path / path
  file.parent.mkdir(parents=True)
  file.write_text(source)
  (found,) = violations(tmp_path)
  assert complaint in found


def test_a_cycle_is_found(tmp_path):
  """If it fails, neighbours of one layer may tie a knot unnoticed."""
  for owner, target in (('train', 'evals'), ('evals', 'train')):
    folder = tmp_path / 'hope_jax' / owner
    folder.mkdir(parents=True)
    (folder / 'a.py').write_text(f'from hope_jax.{target} import a')
  assert cycles(tmp_path) == ['evals <-> train']


def test_what_is_allowed_passes(tmp_path):
  """If it fails, the checker cries wolf and will be switched off."""
  for path, source in (
      ('hope_jax/nested/titans.py', 'import jax\nfrom hope_jax.nested import b'
       '\nfrom hope_jax.kernels.dgd import api\nfrom hope_jax.types import A'),
      ('hope_jax/models/lm.py', 'from flax import linen as nn'),
      ('hope_jax/train/checkpoint.py', 'import orbax.checkpoint'),
      ('hope_jax/__init__.py', 'from hope_jax.run import load'),
      ('hope_jax/main.py', 'from hope_jax.config import fields'),
      ('hope_jax/report/charts.py', 'import json\nimport matplotlib'),
      ('hope_jax/evals/text.py', 'from hope_jax.train import losses'),
      ('hope_jax/optim/factory.py', 'from hope_jax import config'),
      ('hope_jax/optim/m3.py', 'import optax\nimport functools'),
      ('experiments/quickstart.py', 'import ml_collections'),
  ):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
  assert not violations(tmp_path) and not cycles(tmp_path)
