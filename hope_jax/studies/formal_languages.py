"""Trains a model on a formal language and scores it by length (NL Table 5)."""

from collections.abc import Sequence
import functools
import statistics
from typing import Any

import jax
import numpy as np

from hope_jax import sharding
from hope_jax.config import Config, ConfigError, StudyConfig
from hope_jax.evals import labelled
from hope_jax.report import charts, text
from hope_jax.studies import tables, training
from hope_jax.studies.results import Entries, Result, by_cell
from hope_jax.studies.task import Cell, Task
from hope_jax.tasks import formal_languages as task
from hope_jax.tasks import language_files
from hope_jax.tasks.labelling import Encoded, encode

BINS = ('bin0', 'bin1', 'bin2', 'bin3')


def splits(column: str, study: StudyConfig, seed: int) -> task.Splits:
  """The strings of a cell: published files, a plug-in, or generated.

  Raises:
    ConfigError: there are none, or none to train on, or none that say when
      training ends.
  """
  try:
    if study.data_dir:
      made = language_files.read(study.data_dir)
    elif study.language:
      made = task.plug_in(study.language, seed)
    else:
      counts = task.COUNTS | study.counts
      made = task.generate(
          column, seed, lengths=task.LENGTHS | study.lengths,
          counts={split: n for split, n in counts.items() if n},
      )
  except ValueError as error:
    raise ConfigError(str(error)) from error
  for name, examples in made.items():
    if name not in task.COUNTS:
      raise ConfigError(
          f'a split is one of {", ".join(task.COUNTS)}; got {name!r}'
      )
    if not examples:
      raise ConfigError(f'the split {name!r} of {column} has no strings')
  if 'train' not in made or not made.keys() & set(BINS[:2]):
    raise ConfigError(
        "training needs the split 'train', and 'bin0' or 'bin1' to know when to"
        f' end; got {", ".join(made)}'
    )
  return made


def check(study: StudyConfig) -> None:
  """Refuses a language from elsewhere that is none."""
  if study.data_dir or study.language:
    splits(study.shown_columns[0], study, study.seeds[0])


def run(config: Config, cell: Cell, study: StudyConfig) -> dict[str, Any]:
  """Trains until Bin0 and Bin1 are all right, or to the last step.

  As in the published code, Bin0 and Bin1 decide when training ends; here when
  every string was right twice in a row, `train.eval_every` steps apart, for an
  automaton is learned before its gates are sharp. The scores are those of the
  last step; Bin2 and Bin3 are seen once, after it.

  Args:
    config: the run; `model.vocab_size` is that of the language.
    cell: its column is the language.
    study: says where the strings come from.

  Returns:
    Scores by bin ('bin0': share of strings that are right, 'bin0_positions':
    of positions), 'steps', 'loss', 'tokens_per_second' (median) and, for Titans
    memories, 'eigenvalues': symbol -> the least eigenvalue in each layer on a
    string of that symbol.
  """
  encoded = encode(splits(cell.column, study, config.data.seed))
  watched = [name for name in BINS[:2] if name in encoded.splits]
  solved = []

  def score(model, params, bins=watched):
    scores = {}
    for name in bins:
      found = labelled.evaluate(
          model, params, encoded.splits[name], config.data.batch_size
      )
      scores[name] = found['exact']
      scores[f'{name}_positions'] = found['positions']
    return scores

  def until(scores):
    solved.append(all(scores[name] == 1 for name in watched))
    return solved[-2:] == [True, True]

  trained = training.on_labels(
      config, encoded.splits['train'],
      max(len(encoded.symbols), len(encoded.names)), score=score, until=until,
  )
  model, params, facts = trained
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    scores = score(model, params, [b for b in BINS if b in encoded.splits])
    found = eigenvalues(model, params, encoded)
  return scores | facts | ({'eigenvalues': found} if found else {})


def eigenvalues(model, params, encoded: Encoded) -> dict[str, list[float]]:
  """The least eigenvalue alpha - eta |k|^2 that a symbol writes with.

  Returns:
    symbol -> one number a layer, over heads, on a string of sixteen times that
    symbol; {} for models that report none.
  """
  found = {}
  for token, symbol in enumerate(encoded.symbols):
    tokens = np.full((1, 16), token, np.int32)
    _, extra = model.apply({'params': params}, tokens, mutable=['diagnostics'])
    if extra:
      least = extra['diagnostics']['layers']['mixer']['least_eigenvalue']
      found[symbol] = [round(float(x), 4) for x in np.ravel(least)]
  return found


def _percent(results: Sequence[Result], name: str) -> str:
  """The mean over seeds in percent, and the worst seed where they differ."""
  values = [100 * r['scores'][name] for r in results if name in r['scores']]
  if not values:
    return '-'
  mean = f'{statistics.fmean(values):.1f}'.removesuffix('.0')
  spread = max(values) - min(values)
  return mean if spread < 0.05 else f'{mean} ({min(values):.1f})'


def grids(results: list[Result]) -> dict[str, Entries]:
  """Accuracy in short and in long bins, and what it took."""
  cells = by_cell(results)

  def pair(a, b):
    return {
        key: f'{_percent(found, a)} / {_percent(found, b)}'
        for key, found in cells.items()
    }

  def cost(found):
    steps = statistics.fmean(r['scores']['steps'] for r in found)
    speed = max(r['scores']['tokens_per_second'] for r in found)
    return f'{steps:,.0f} / {text.shorten(speed)}'

  return {
      'Bin0 / Bin1: strings right at every position, %; the mean over seeds,'
      ' and in brackets the worst seed where they differ': pair(*BINS[:2]),
      'Bin2 / Bin3, the same': pair(*BINS[2:]),
      'Steps / tokens a second of training, in the fastest run': {
          key: cost(found) for key, found in cells.items()
      },
      'Seeds': {key: str(len(found)) for key, found in cells.items()},
  }


def figures(results: list[Result]) -> dict[str, str]:
  """Accuracy by length on each language; the eigenvalues learned on Parity."""
  drawn, by_column = {}, {}
  for (row, column), found in by_cell(results).items():
    by_column.setdefault(column, {})[row] = [r['scores'] for r in found]
  colours = _colours(results)
  names = '2-50', '51-100', '100-500', '500-2,000'
  for column, rows in by_column.items():
    lines = []
    for row, found in rows.items():
      points = [
          (x, 100 * statistics.fmean(s[name] for s in found))
          for x, name in enumerate(BINS)
          if all(name in s for s in found)
      ]
      lines.append(charts.Line(row, points, marks=True, colour=colours[row]))
    drawn[f'length_{column}'] = charts.lines(
        column, lines,
        x=charts.Axis('length', ticks=list(enumerate(names))),
        y=charts.Axis('strings right, %', (0, 100)),
    )
  return drawn | _eigenvalue_figure(results)


def _colours(results: list[Result]) -> dict[str, int]:
  """Row -> its colour, the same in every figure."""
  rows = dict.fromkeys(result['row'] for result in results)
  return {row: i for i, row in enumerate(rows)}


def _eigenvalue_figure(results: list[Result]) -> dict[str, str]:
  lines, colours = [], _colours(results)
  found = [
      r for r in results
      if r['column'] == 'parity' and 'eigenvalues' in r['scores']
  ]
  for (row, _), seeds in by_cell(found).items():
    for j, result in enumerate(seeds):
      pairs = sorted(result['scores']['eigenvalues'].items())
      points = [(x, min(layers)) for x, (_, layers) in enumerate(pairs)]
      name = row if j == 0 else ''
      lines.append(
          charts.Line(name, points, marks=True, colour=colours[row])
      )
  if not lines:
    return {}
  return {'eigenvalues_parity': charts.lines(
      'parity, each seed', lines,
      x=charts.Axis('symbol read', ticks=[(0, '0'), (1, '1')]),
      y=charts.Axis('least eigenvalue of a write', (-1, 1)),
  )}


TASK = Task(
    run,
    functools.partial(tables.render, grids),
    figures,
    check=check,
    counts=tuple(task.COUNTS),
    lengths=tuple(task.LENGTHS),
    columns=tuple(task.LANGUAGES),
    # Of the bins that training sees; the others are for the tables alone.
    loss=lambda scores: 1 - statistics.fmean(
        scores[name] for name in BINS[:2] if name in scores
    ),
)
