"""Sizes that keep the code readable: functions, and files."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FILE_LINES = 400
FUNCTION_LINES = 80


def too_long(root: pathlib.Path) -> list[str]:
  """Returns one line for each file and function that is too long."""
  found = []
  for path in sorted(root.glob('hope_jax/**/*.py')):
    text = path.read_text(encoding='utf-8')
    where = path.relative_to(root)
    length = len(text.splitlines())
    if length > FILE_LINES:
      found.append(f'{where}: {length} lines')
    # A kernel is one function: what it holds lives in one scope of references.
    if 'kernels' in where.parts:
      continue
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
          found.append(f'{where}:{node.lineno}: {node.name}, {length} lines')
  return found


def test_sizes():
  """If it fails, something can no longer be taken in at one look."""
  assert too_long(ROOT) == []


def test_what_is_too_long_is_found(tmp_path):
  """If it fails, the limits exist on paper only."""
  body = '  x = 0\n' * FUNCTION_LINES
  for name in ('train', 'kernels'):
    folder = tmp_path / 'hope_jax' / name
    folder.mkdir(parents=True)
    (folder / 'a.py').write_text(f'def f():\n{body}')
    (folder / 'b.py').write_text('x = 0\n' * (FILE_LINES + 1))
  assert too_long(tmp_path) == [
      'hope_jax/kernels/b.py: 401 lines',
      'hope_jax/train/a.py:1: f, 81 lines',
      'hope_jax/train/b.py: 401 lines',
  ]
