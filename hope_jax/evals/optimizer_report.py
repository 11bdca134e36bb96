"""Results of `optimizers` as tables and drawings in a README.

    python -m hope_jax.evals.optimizer_report experiments/optimizers

Reads results/NAME.json below the folder, draws results/NAME.svg, and writes a
table and what it shows between the lines `<!-- NAME -->` and `<!-- /NAME -->`
of the folder's README.md. Every sentence is made from the numbers, by one rule:
an optimizer is ahead of another where all its runs are.
"""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
import re
import statistics
import sys
from typing import Any

import numpy as np

from hope_jax.evals import charts
from hope_jax.evals.optimizer_problems import FREQUENCY, WAVE
from hope_jax.evals.optimizers import CONVERGED, heldout_loss

Results = Mapping[str, Any]

NAMES = {
    'adamw': 'AdamW', 'muon': 'Muon', 'adamuon': 'AdaMuon-style', 'm3': 'M3',
    'dgd': 'DGD, dense layers', 'momentum': 'momentum SGD',
    'delta_momentum': 'delta momentum', 'deep_momentum': 'deep momentum',
}
# The paper's order of losses, lowest first: Fig. 11, and Fig. 4 of the toy.
_BY_LOSS = ('m3', 'muon', 'adamw')
CLAIMS = {
    'landscape': ('delta_momentum', 'momentum'),
    'images': _BY_LOSS,
    'text': _BY_LOSS,
}
_COLOURS = (
    '#0b6e99', '#d9730d', '#6b4fbb', '#c0392b', '#7a5c2e', '#8a939b', '#2e8b57',
    '#c2185b',
)
_STYLE = (
    'svg{font:13px system-ui,sans-serif;background:#fff;fill:#1d2328}'
    '.grid{stroke:#e2e5e8}.tick,.label{fill:#5c666f;font-size:12px}'
    '.line{fill:none;stroke-width:2}.floor{stroke:#a9b1b8}'
    + ''.join(
        f'.line.s{i}{{stroke:{c}}}.name.s{i},.mark.s{i}{{fill:{c}}}'
        for i, c in enumerate(_COLOURS)
    )
)


def table(results: Results) -> str:
  """Returns a Markdown table, lowest held-out loss first."""
  landscape = results['config']['task'] == 'landscape'
  extra, form = {
      'landscape': ('', ''),
      'images': ('accuracy', '.1%'),
      'text': ('bits_per_byte', '.3f'),
  }[results['config']['task']]
  head = ['optimizer', 'learning rate']
  if landscape:
    head += ['psi at the end', f'at the bottom (psi < {CONVERGED}) after steps']
  else:
    head += ['training loss', 'held-out loss', extra.replace('_', ' ')]
    head += ['CPU ms a step', 'ms a step']
  rows = [head, ['---'] * len(head)]
  train, heldout = (_losses(results, kind) for kind in ('training', 'held-out'))
  for name in ranked(results):
    found = results['optimizers'][name]
    runs = found['runs']
    row = [NAMES[name], _rate(found)]
    if landscape:
      there = sorted(r['settled'] for r in runs if r['settled'] is not None)
      steps = f'median {statistics.median(there):g}' if there else 'never'
      row += [
          _spread(heldout[name], '.2g'),
          f'{len(there)} of {len(runs)} runs, {steps}' if there else steps,
      ]
    else:
      row += [
          _spread(train[name], '.3g'),
          _spread(heldout[name], '.3f'),
          _spread([r['heldout'].get(extra, math.nan) for r in runs], form),
          f'{statistics.median(r["cpu_milliseconds"] for r in runs):.0f}',
          f'{statistics.median(r["milliseconds"] for r in runs):.0f}',
      ]
    rows.append(row)
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def _rate(found: Mapping[str, Any]) -> str:
  """The rate of the runs, and whether the search ended at its border."""
  rate, tried = found['learning_rate'], [float(r) for r in found['trials']]
  for end, name in ((max(tried), 'highest'), (min(tried), 'lowest')):
    if rate == end and len(tried) > 1:
      return f'{rate:g} ({name} tried)'
  return f'{rate:g}'


def ranked(results: Results) -> list[str]:
  """Returns the optimizers, lowest median of the held-out loss first."""
  losses = _losses(results, 'held-out')
  return sorted(losses, key=lambda name: statistics.median(losses[name]))


def verdict(results: Results) -> str:
  """Returns what the runs say of the paper's order, and no more."""
  task = results['config']['task']
  claim = CLAIMS[task]
  order = ' < '.join(NAMES[name] for name in claim)
  words = []
  kinds = ('training', 'held-out')
  if task == 'landscape':
    kinds = ('held-out',)  # psi at the end; there is nothing to hold out
  for kind in kinds:
    losses = _losses(results, kind)
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
  runs = len(losses[a])
  if max(losses[a]) < min(losses[b]):
    return f'{NAMES[a]} is ahead of {NAMES[b]} in all {runs} runs'
  if max(losses[b]) < min(losses[a]):
    return f'{NAMES[b]} is ahead of {NAMES[a]} in all {runs} runs'
  return f'the runs of {NAMES[a]} and {NAMES[b]} overlap'


def setting(results: Results) -> str:
  """Returns what was run, and where."""
  config, machine = results['config'], results['machine']
  trials = config['trials']
  size = f'{results["parameters"]:,} parameters, '
  return (
      f'{size}{config["steps"]} steps, at most {trials} trials of the learning'
      f' rate at seed 0, then {len(config["seeds"])} runs; median, and [lowest,'
      f' highest]. {machine["processor"]}, {machine["device"]}, jax'
      f' {machine["jax"]}, optax {machine["optax"]}; joined at commit'
      f' {machine["commit"]}, {machine["date"]}.'
  )


def drawing(results: Results) -> str:
  """Returns the SVG of a study."""
  if results['config']['task'] == 'landscape':
    return _landscape(results)
  series = []
  for i, (name, found) in enumerate(results['optimizers'].items()):
    curves = [run['curve'] for run in found['runs']]
    length = min(map(len, curves))
    points = [
        (curves[0][j][0], statistics.median(c[j][1] or 9.0 for c in curves))
        for j in range(length)
    ]
    series.append(charts.Line(NAMES[name], f's{i}', points))
  values = [y for line in series for _, y in line.points]
  svg = charts.lines(
      'training loss by step, median of the runs', series,
      y_range=(0.95 * min(values), min(max(values), 2.5 * np.median(values))),
      x_label='step', right=130,
  )
  return _alone(svg)


def _landscape(results: Results) -> str:
  """One panel an optimizer: its path over the floor of the valley."""
  width, height, columns = 420, 260, 2
  panels = []
  for i, (name, found) in enumerate(results['optimizers'].items()):
    r = np.linspace(-4, 1.5, 300)
    floor = [(x, x + WAVE * math.sin(FREQUENCY * x)) for x in r]
    trace = found['runs'][0]['trace']
    path = [(min(max(x, r[0]), r[-1]), y) for x, y in trace]
    svg = charts.lines(
        f'path of {NAMES[name]}',
        [
            charts.Line('', 'floor', floor),
            charts.Line('', f's{i}', path),
        ],
        y_range=(-4.5, 2.5),
        x_label=f'{NAMES[name]}: r; theta upwards; grey: the floor',
        width=width, height=height, right=10,
    )
    x, y = i % columns * width, i // columns * height
    panels.append(
        svg.replace('<svg ', f'<svg x="{x}" y="{y}" width="{width}"'
                    f' height="{height}" ', 1)
    )
  rows = -(-len(panels) // columns)
  return _alone(
      f'<svg viewBox="0 0 {columns * width} {rows * height}" role="img"'
      f' aria-label="paths over the landscape">{"".join(panels)}</svg>'
  )


def _alone(svg: str) -> str:
  """An SVG that needs no page around it."""
  svg = svg.replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
  return svg.replace('>', f'><style>{_STYLE}</style>', 1) + '\n'


def _losses(results: Results, kind: str) -> dict[str, list[float]]:
  """Optimizer -> 'training' or 'held-out' loss of each run; inf: diverged."""

  def loss(run):
    value = run['train_loss']
    value = math.inf if value is None else value
    return heldout_loss(run) if kind == 'held-out' else value

  return {
      name: [loss(run) for run in found['runs']]
      for name, found in results['optimizers'].items()
  }


def _spread(values: Sequence[float], form: str) -> str:
  low, middle, high = min(values), statistics.median(values), max(values)
  return f'{middle:{form}} [{low:{form}}, {high:{form}}]'


def render(readme: str, name: str, results: Results) -> str:
  """Returns the README with the block of one study made anew."""
  block = (
      f'<!-- {name} -->\n{setting(results)}\n\n{table(results)}\n\n'
      f'{verdict(results)}\n\n![{name}](results/{name}.svg)\n<!-- /{name} -->'
  )
  pattern = re.compile(f'<!-- {name} -->.*<!-- /{name} -->', re.DOTALL)
  if not pattern.search(readme):
    raise ValueError(f'README.md must have the lines <!-- {name} --> and <!--'
                     f' /{name} -->')
  return pattern.sub(lambda _: block, readme)


def main(folder: str) -> None:
  """Renders every study of a folder."""
  root = pathlib.Path(folder)
  readme = root / 'README.md'
  text = readme.read_text()
  for path in sorted(root.glob('results/*.json')):
    results = json.loads(path.read_text())
    path.with_suffix('.svg').write_text(drawing(results))
    text = render(text, path.stem, results)
  readme.write_text(text)


if __name__ == '__main__':
  main(sys.argv[1])
