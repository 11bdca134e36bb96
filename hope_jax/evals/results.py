"""Results of a sweep, one a cell: what its tables and figures share."""

import re
from typing import Any

# 'row', 'column', 'seed', 'scores' by name, and where they come from.
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
