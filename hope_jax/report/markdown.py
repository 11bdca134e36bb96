"""Tables in Markdown, and files that have a part made of results."""

from collections.abc import Iterable, Mapping, Sequence


def table(rows: Iterable[Sequence[str]]) -> str:
  """Returns a table of texts, the row of its head first."""
  head, *body = rows
  lines = [head, ['---'] * len(head), *body]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def grid(
    title: str,
    entries: Mapping[tuple[str, str], str],
    rows: Sequence[str],
    columns: Sequence[str],
) -> str:
  """Returns a table of (row, column) -> text under its title in bold."""
  lines = [f'**{title}**', '', '| | ' + ' | '.join(columns) + ' |']
  lines.append('|---' * (len(columns) + 1) + '|')
  for row in rows:
    texts = [entries.get((row, column), '') for column in columns]
    lines.append(f'| {row} | ' + ' | '.join(texts) + ' |')
  return '\n'.join(lines)


def replaced(text: str, begin: str, end: str, part: str) -> str:
  """Returns `text` with `part` between two markers, if it has them."""
  before, found, rest = text.partition(begin)
  _, closed, after = rest.partition(end)
  if not (found and closed):
    return text
  return f'{before}{begin}\n{part}\n{end}{after}'
