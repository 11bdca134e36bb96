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
from hope_jax.evals.optimizers import (
  CONVERGED,
  FREQUENCY,
  WAVE,
  heldout_loss,
)

Results = Mapping[str, Any]

NAMES = {
    'adamw': 'AdamW', 'muon': 'Muon', 'adamuon': 'AdaMuon-style', 'm3': 'M3',
    'dgd': 'DGD, dense layers', 'momentum': 'momentum SGD',
    'delta_momentum': 'delta momentum', 'deep_momentum': 'deep momentum',
}
CLAIM = ('m3', 'muon', 'adamw')  # the paper's order of losses, lowest first
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
  for name in ranked(results):
    found = results['optimizers'][name]
    runs = found['runs']
    row = [NAMES[name], f'{found["learning_rate"]:g}']
    if landscape:
      there = sorted(r['settled'] for r in runs if r['settled'] is not None)
      steps = f'median {statistics.median(there):g}' if there else 'never'
      row += [
          _spread([heldout_loss(r) for r in runs], '.2g'),
          f'{len(there)} of {len(runs)} runs, {steps}' if there else steps,
      ]
    else:
      train = [math.inf if (x := r['train_loss']) is None else x for r in runs]
      row += [
          _spread(train, '.3f'),
          _spread([heldout_loss(r) for r in runs], '.3f'),
          _spread([r['heldout'].get(extra, math.nan) for r in runs], form),
          f'{statistics.median(r["cpu_milliseconds"] for r in runs):.0f}',
          f'{statistics.median(r["milliseconds"] for r in runs):.0f}',
      ]
    rows.append(row)
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def ranked(results: Results) -> list[str]:
  """Returns the optimizers, lowest median of the held-out loss first."""
  return sorted(
      results['optimizers'],
      key=lambda name: statistics.median(_losses(results, name)),
  )


def verdict(results: Results) -> str:
  """Returns what the runs say of the paper's order, and no more."""
  runs = len(results['config']['seeds'])
  words = []
  for a, b in zip(CLAIM, CLAIM[1:]):
    first, second = sorted(_losses(results, a)), sorted(_losses(results, b))
    if first[-1] < second[0]:
      said = f'{NAMES[a]} is ahead of {NAMES[b]} in all {runs} runs'
    elif second[-1] < first[0]:
      said = f'{NAMES[b]} is ahead of {NAMES[a]} in all {runs} runs'
    else:
      said = f'the runs of {NAMES[a]} and {NAMES[b]} overlap'
    words.append(said)
  holds = all(
      max(_losses(results, a)) < min(_losses(results, b))
      for a, b in zip(CLAIM, CLAIM[1:])
  )
  order = ' < '.join(NAMES[name] for name in CLAIM)
  ranks = ', '.join(NAMES[name] for name in ranked(results))
  return (
      f'By held-out loss, {words[0]}, and {words[1]}: the paper\'s {order} is'
      f' {"seen" if holds else "not seen"} here. Lowest median first: {ranks}.'
  )


def setting(results: Results) -> str:
  """Returns what was run, and where."""
  config, machine = results['config'], results['machine']
  trials = config['trials']
  size = f'{results["parameters"]:,} parameters, '
  return (
      f'{size}{config["steps"]} steps, at most {trials} trials of the learning'
      f' rate at seed 0, then {len(config["seeds"])} runs; median, and [lowest,'
      f' highest]. {machine["cpu"]}, {machine["cores"]} core, jax'
      f' {machine["jax"]}, optax {machine["optax"]}, commit'
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
    path = [point for point in found['runs'][0]['trace'] if abs(point[0]) < 4]
    svg = charts.lines(
        f'path of {NAMES[name]}',
        [
            charts.Line('', 'floor', floor),
            charts.Line('', f's{i}', path, marks=False),
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


def _losses(results: Results, name: str) -> list[float]:
  return [heldout_loss(run) for run in results['optimizers'][name]['runs']]


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
