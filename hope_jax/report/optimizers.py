"""Optimizers side by side, in words: a table, and what it shows.

Takes the runs of one task by optimizer: name -> results of its seeds, each with
'scores' (see `studies.optimizers.run`), 'learning_rate' and 'trials': rate ->
held-out loss. Every sentence is made from the numbers, by one rule: an
optimizer is ahead of another where all its runs are.
"""

from collections.abc import Mapping, Sequence
import math
import statistics
from typing import Any

from hope_jax.report import charts, markdown

Found = Mapping[str, Sequence[Mapping[str, Any]]]

CONVERGED = 0.01  # what counts as the bottom of the landscape
NAMES = {
    'adamw': 'AdamW', 'muon': 'Muon', 'adamuon': 'AdaMuon-style', 'm3': 'M3',
    'dgd': 'DGD, dense layers', 'momentum': 'momentum SGD',
    'delta_momentum': 'delta momentum', 'deep_momentum': 'deep momentum',
}
# The paper's order of losses, lowest first: Fig. 11, and Fig. 4 of the toy.
BY_LOSS = ('m3', 'muon', 'adamw')
CLAIMS = {'landscape': ('delta_momentum', 'momentum')}


def name_of(optimizer: str) -> str:
  """Returns an optimizer's name in words."""
  return NAMES.get(optimizer, optimizer.replace('_', ' '))


def table(task: str, found: Found) -> str:
  """Returns a Markdown table, lowest held-out loss first.

  Args:
    task: 'landscape', 'text', or a source of images.
    found: see above.
  """
  head = ['optimizer', 'learning rate']
  extra, form = ('bits_per_byte', '.3f') if task == 'text' else (
      'accuracy', '.1%'
  )
  if task == 'landscape':
    head += ['psi at the end', f'at the bottom (psi < {CONVERGED}) after steps']
  else:
    head += ['training loss', 'held-out loss', extra.replace('_', ' ')]
    head += ['CPU ms a step', 'ms a step']
  rows = [head]
  train, heldout = (_losses(found, kind) for kind in ('training', 'held-out'))
  for name in ranked(found):
    scores = [run['scores'] for run in found[name]]
    row = [name_of(name), _rate(found[name][0])]
    if task == 'landscape':
      there = sorted(s['settled'] for s in scores if s['settled'] is not None)
      steps = f'median {statistics.median(there):g}' if there else 'never'
      row += [
          _spread(heldout[name], '.2g'),
          f'{len(there)} of {len(scores)} runs, {steps}' if there else steps,
      ]
    else:
      row += [
          _spread(train[name], '.3g'),
          _spread(heldout[name], '.3f'),
          _spread([s['heldout'].get(extra, math.nan) for s in scores], form),
          f'{statistics.median(s["cpu_milliseconds"] for s in scores):.0f}',
          f'{statistics.median(s["milliseconds"] for s in scores):.0f}',
      ]
    rows.append(row)
  return markdown.table(rows)


def _rate(run: Mapping[str, Any]) -> str:
  """The rate of a run, and whether the search ended at its border."""
  rate, tried = run['learning_rate'], run['trials']
  for end, name in ((max(tried), 'highest'), (min(tried), 'lowest')):
    if rate == end and len(tried) > 1:
      return f'{rate:g} ({name} tried)'
  return f'{rate:g}'


def ranked(found: Found) -> list[str]:
  """Returns the optimizers, lowest median of the held-out loss first."""
  losses = _losses(found, 'held-out')
  return sorted(losses, key=lambda name: statistics.median(losses[name]))


def verdict(task: str, found: Found) -> str:
  """Returns what the runs say of the paper's order, and no more."""
  claim = CLAIMS.get(task, BY_LOSS)
  if not all(name in found for name in claim):
    return 'Not all that the paper puts in order were run.'
  order = ' < '.join(map(name_of, claim))
  words = []
  kinds = ('training', 'held-out')
  if task == 'landscape':
    kinds = ('held-out',)  # psi at the end; there is nothing to hold out
  for kind in kinds:
    losses = _losses(found, kind)
    said = [_compared(a, b, losses) for a, b in zip(claim, claim[1:])]
    holds = all(
        max(losses[a]) < min(losses[b]) for a, b in zip(claim, claim[1:])
    )
    name = 'psi' if task == 'landscape' else f'{kind} loss'
    words.append(
        f'By {name}, {", and ".join(said)}: the paper\'s order {order} is'
        f' {"seen" if holds else "not seen"}.'
    )
  return ' '.join(words)


def _compared(a: str, b: str, losses: Mapping[str, Sequence[float]]) -> str:
  for first, second in ((a, b), (b, a)):
    if max(losses[first]) < min(losses[second]):
      return (
          f'{name_of(first)} is ahead of {name_of(second)} in all'
          f' {len(losses[a])} runs'
      )
  return f'the runs of {name_of(a)} and {name_of(b)} overlap'


def setting(trials: int, results: Sequence[Mapping[str, Any]]) -> str:
  """Returns what was run, and where."""

  def every(name: str) -> str:
    return ', '.join(sorted({r['machine'][name] for r in results}))

  scores = results[0]['scores']
  steps = max(r['scores']['steps'] for r in results)
  runs = len({r['seed'] for r in results})
  dates = sorted({r['date'] for r in results})
  return (
      f'{scores["parameters"]:,} parameters, {steps} steps, at most {trials}'
      f' trials of the learning rate at seed 0, then {runs} runs; median, and'
      f' [lowest, highest]. {every("processor")},'
      f' {every("device")}, jax {every("jax")}, optax {every("optax")}; joined'
      f' at commit {every("commit")}, {", ".join(dates)}.'
  )


def curves(found: Found) -> str:
  """Returns the SVG of the losses while training."""
  series = []
  for i, (name, runs) in enumerate(found.items()):
    every = [run['scores']['curve'] for run in runs]
    points = [
        (points[0][0], statistics.median(
            math.inf if loss is None else loss for _, loss in points
        ))
        for points in zip(*every)
    ]
    points = [point for point in points if math.isfinite(point[1])]
    series.append(charts.Line(name_of(name), points, colour=i))
  return charts.lines(
      'Training loss, median of the runs', series, x=charts.Axis('step'),
      y=charts.Axis('loss, nats', log=True),
  )


def heldout_loss(scores: Mapping[str, Any]) -> float:
  """The held-out loss of a run; infinite where it came to none."""
  loss = scores['heldout'].get('loss')
  return math.inf if loss is None else loss


def _losses(found: Found, kind: str) -> dict[str, list[float]]:
  """Optimizer -> 'training' or 'held-out' loss of each run; inf: diverged."""

  def loss(scores):
    value = scores['train_loss']
    value = math.inf if value is None else value
    return heldout_loss(scores) if kind == 'held-out' else value

  return {
      name: [loss(run['scores']) for run in runs]
      for name, runs in found.items()
  }


def _spread(values: Sequence[float], form: str) -> str:
  low, middle, high = min(values), statistics.median(values), max(values)
  return f'{middle:{form}} [{low:{form}}, {high:{form}}]'
