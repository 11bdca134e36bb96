"""What a kind of table brings to the runner of studies."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from hope_jax.config import Config, StudyConfig
from hope_jax.studies.results import Result


class Cell(NamedTuple):
  """One number of a table, for one seed; with a search, at one rate."""

  row: str
  column: str
  seed: int
  learning_rate: float | None = None  # None: what the fields say


def _loss(scores: Mapping[str, Any]) -> float:
  return scores['loss']


def _configured_rate(config: Config, row: str) -> float:
  del row
  return config.optimizer.learning_rate


def _one_cell(content: Mapping[str, Any]) -> list[Result]:
  return [dict(content)]


class Task(NamedTuple):
  """A kind of table. A file of this folder each, or a few that are alike."""

  # (config of the cell, cell, study) -> scores, JSON values by name. What a
  # signal has stopped raises `interrupts.Stopped`.
  run: Callable[[Config, Cell, StudyConfig], dict[str, Any]]
  # (study, results, Markdown of the figures) -> paragraphs of Markdown.
  render: Callable[[StudyConfig, list[Result], list[str]], list[str]]
  # Results -> name of a figure -> SVG.
  figures: Callable[[list[Result]], dict[str, str]] = lambda results: {}
  # Refuses a study, before a cell is run, of which none can be.
  check: Callable[[StudyConfig], None] = lambda study: None
  # What `StudyConfig.counts`, `lengths` and `options` may name, and a column or
  # a row be; '#' is a number, or several as '4+8', '*' is anything.
  counts: Sequence[str] = ()
  lengths: Sequence[str] = ()
  options: Sequence[str] = ()
  columns: Sequence[str] = ('*',)
  rows: Collection[str] = ('*',)
  # What a search for the learning rate makes small, and where it starts.
  loss: Callable[[Mapping[str, Any]], float] = _loss
  first_rate: Callable[[Config, str], float] = _configured_rate
  # Study -> what decides the examples, besides what all have; JSON values.
  data: Callable[[StudyConfig], dict[str, Any]] = lambda study: {}
  # What a file of results holds -> the results: one, or all of a table.
  read: Callable[[Mapping[str, Any]], list[Result]] = _one_cell
