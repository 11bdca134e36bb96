"""Results of a study: a file a cell, written whole or not at all."""

from collections.abc import Iterator
import contextlib
import json
import os
import re
from typing import Any

from hope_jax.config import ConfigError
from hope_jax.config.build import first_line
from hope_jax.files import replacing, require_file

# 'row', 'column', 'seed', 'scores' by name, and where they come from; where a
# search chose it, 'learning_rate', too, and in a table 'trials': rate -> loss.
Result = dict[str, Any]
# A table: (row, column) -> text.
Entries = dict[tuple[str, str], str]


def by_cell(results: list[Result]) -> dict[tuple[str, str], list[Result]]:
  """(row, column) -> the results of its seeds, in their order."""
  cells = {}
  for result in results:
    cells.setdefault((result['row'], result['column']), []).append(result)
  return cells


def slug(text: str) -> str:
  """Returns a text as the name of a file."""
  return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')


@contextlib.contextmanager
def expected(path: str) -> Iterator[None]:
  """For what is made of files, which may be damaged, or somebody else's.

  Args:
    path: the file, or the folder of several.

  Raises:
    ConfigError: something in them is no result.
  """
  try:
    yield
  except ConfigError:
    raise
  except (
      ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
      ValueError,
  ) as error:
    raise ConfigError(
        f'{path!r} holds what is no result of this study'
        f' ({type(error).__name__}: {first_line(error)}); move it away, or'
        ' choose another --workdir'
    ) from error


def read_json(path: str) -> Any:
  """Returns what a JSON file holds."""
  require_file(path)
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def write_json(path: str, value: Any) -> None:
  """Writes JSON, a list of plain values on one line."""
  text = json.dumps(value, indent=1)
  # No text of JSON has a raw line break: these are the writer's own.
  flat = lambda match: f'[{" ".join(match[1].split())}]'
  write_text(path, re.sub(r'\[(\n[^][{}"]*)\]', flat, text) + '\n')


def write_text(path: str, text: str) -> None:
  """Writes a file whole or not at all: an interruption leaves no half."""
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  with replacing(path) as file:
    file.write(text)
