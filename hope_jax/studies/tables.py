"""Grids of results, rows x columns, and what they were measured on."""

from collections.abc import Callable, Sequence

from hope_jax.config import StudyConfig
from hope_jax.report import markdown
from hope_jax.studies.results import Entries, Result


def render(
    make: Callable[[list[Result]], dict[str, Entries]],
    study: StudyConfig,
    results: list[Result],
    figures: list[str],
) -> list[str]:
  """Returns tables, figures and provenance, as `Task.render` wants them.

  Args:
    make: results -> title of a table -> (row, column) -> text. Its columns are
      those of the study, or all others in the order of the entries.
    study: the study.
    results: of its cells, one at least.
    figures: Markdown of each.
  """
  parts = []
  for title, entries in make(results).items():
    rows = [r for r in study.fields if any(row == r for row, _ in entries)]
    known = list(dict.fromkeys(column for _, column in entries))
    columns = [c for c in study.shown_columns if c in known] or known
    parts.append(markdown.grid(title, entries, rows, columns))
  return [*parts, *figures, provenance(results)]


def provenance(results: Sequence[Result]) -> str:
  """Returns what the results cost, and the machines and versions of them."""

  def every(name: str) -> str:
    return ', '.join(sorted({r['machine'].get(name, '?') for r in results}))

  hours = sum(r['cpu_seconds'] for r in results) / 3600
  stopped = sum(r['scores'].get('stopped') == 'time' for r in results)
  note = f' {stopped} of them were stopped by train.max_seconds.'
  return (
      f'{len(results)} cells; {hours:.2f} CPU hours on {every("device")}'
      f' ({every("processor")}), jax {every("jax")}, Python {every("python")},'
      f' commit {every("commit")}.' + (note if stopped else '')
  )
