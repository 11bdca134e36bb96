"""The report of a run as one HTML file that needs nothing beside it."""

from collections.abc import Sequence
import html
import json
from typing import Any

from hope_jax.evals import charts, report

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --ink: #1d2328; --soft: #5c666f; --line: #e2e5e8;
  --card: #f3f4f5; --grey: #a9b1b8;
  --c0: #0b6e99; --c1: #d9730d; --c2: #8a939b; --c3: #6b4fbb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16191c; --ink: #e8eaec; --soft: #9aa4ad; --line: #2d3338;
    --card: #1f2428; --grey: #5a646d;
    --c0: #4db5e0; --c1: #f2994a; --c2: #8a939b; --c3: #a78bfa;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.25rem 4rem; max-width: 46rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
h3 { font-size: .9rem; margin: .8rem 0 0; font-weight: 600; }
p { margin: .3rem 0 1rem; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.tiles { display: grid; gap: .8rem; margin: 1.6rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); }
.tile { background: var(--card); border-radius: .6rem; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .87rem; display: block;
  line-height: 1.4; }
figure { margin: 1rem 0; }
figcaption { margin-top: .7rem; }
svg { width: 100%; height: auto; display: block; font: 13px system-ui,
  -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); }
.grid { stroke: var(--line); }
.tick, .label { fill: var(--soft); font-size: 12px; }
.reference { stroke: var(--soft); stroke-dasharray: 2 4; }
.value { font-variant-numeric: tabular-nums; }
.line { fill: none; stroke-width: 2.25; stroke-linejoin: round; }
.error { stroke-width: 1.5; opacity: .55; }
.mark { stroke: var(--page); stroke-width: 1.5; }
.bar { fill: var(--grey); } .bar.s0 { fill: var(--c0); }
.name.s0 { fill: var(--c0); font-weight: 650; }
.name.s1 { fill: var(--c1); } .name.s3 { fill: var(--c3); }
.name.s2 { fill: var(--soft); }
.line.s0, .error.s0 { stroke: var(--c0); } .mark.s0 { fill: var(--c0); }
.line.s1, .error.s1 { stroke: var(--c1); } .mark.s1 { fill: var(--c1); }
.line.s2, .error.s2 { stroke: var(--c2); } .mark.s2 { fill: var(--c2); }
.line.s3, .error.s3 { stroke: var(--c3); } .mark.s3 { fill: var(--c3); }
.line.s2 { stroke-dasharray: 6 4; }
.line.thin { stroke: var(--grey); stroke-width: 1.25; }
.name.thin { fill: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; margin: .4rem 0 1rem; }
th { color: var(--soft); font-weight: 500; }
th, td { text-align: right; padding: .28rem .5rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
pre { background: var(--card); border-radius: .6rem; padding: 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre b { color: var(--c0); }
summary { cursor: pointer; }
"""


def as_html(results: report.Results) -> str:
  """Returns the page; it refers to nothing outside itself.

  Args:
    results: as described in `report`.
  """
  name = report.model_name(results)
  parts = [
      f'<h1>What {_safe(name)} learned</h1>',
      f'<p class="soft">{_safe(report.headline(results))}</p>',
      _tiles(results),
      _heldout(results, name),
      _curve(results),
      _reading(results['second_reading']),
      _sample(results['sample']),
      _levels(results),
      _stability(results),
      _made(results),
  ]
  return (
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f'<title>What {_safe(name)} learned</title><style>{_STYLE}</style></head>'
      f'\n<body>{"".join(parts)}</body></html>\n'
  )


def _safe(text: Any) -> str:
  return html.escape(str(text))


def _tiles(results: report.Results) -> str:
  own = results['heldout']['bits_per_byte']
  trigram = results['baselines'].get('trigram')
  below = ''
  if trigram is not None:
    side = 'below' if own < trigram else 'above'
    below = f'; {abs(own - trigram):.2f} {side} the trigram'
  tiles = [(f'{own:.2f}', f'bits per byte of held-out text{below}')]
  reading = results['second_reading']
  if reading:
    on = reading['on']
    # The middle of the distances: neither the easiest nor the hardest.
    i = len(on['distances']) // 2
    gain = on['reset - carried'][i]
    tiles.append((
        # Adding zero turns -0.0 into 0.0; a minus as wide as the plus.
        f'{round(gain["mean"], 2) + 0.0:+.2f}'.replace('-', '\u2212'),
        'bits per byte saved by the memory at a second reading,'
        f' {on["distances"][i]:,} other bytes later (± {gain["error"]:.2f})',
    ))
  training = results['training']
  took = ''
  if not training['from_step']:  # else only a part of the run was timed
    took = f' in {report.duration(results["seconds"]["training"])}'
  tiles.append((
      charts.shorten(training['bytes']) + 'B',
      f'of text read{took} on {results["machine"]["device"]}',
  ))
  boxes = ''.join(
      f'<div class="tile"><b>{_safe(b)}</b><span>{_safe(text)}</span></div>'
      for b, text in tiles
  )
  return f'<div class="tiles">{boxes}</div>'


def _heldout(results: report.Results, name: str) -> str:
  items = [charts.Bar(name, 's0', results['heldout']['bits_per_byte'])]
  items += [charts.Bar(k, '', v) for k, v in results['baselines'].items()]
  items.sort(key=lambda item: -item.value)
  return (
      '<h2>Held-out text, bits per byte</h2>'
      '<p class="soft">Shorter is better. Eight is knowing nothing.</p>'
      f'<figure>{charts.bars("Held-out bits per byte", items)}'
      f'<figcaption>{_safe(report.note_on_heldout(results))}</figcaption>'
      '</figure>'
  )


def _curve(results: report.Results) -> str:
  by_split = {'train': [], 'heldout': []}
  for record in results['curve']:
    by_split[record['split']].append(
        (record['bytes'], record['bits_per_byte'])
    )
  series = [
      charts.Line(name, style, points, marks=marks)
      for name, style, points, marks in (
          ('training', 'thin', by_split['train'], False),
          ('held out', 's0', by_split['heldout'], True),
      )
      if points
  ]
  if not series:
    return ''
  values = [y for line in series for _, y in line.points]
  references = [
      (name, bits)
      for name, bits in results['baselines'].items()
      if name in ('trigram', 'gzip -9')
  ]
  low = min(values + [bits for _, bits in references])
  drawing = charts.lines(
      'Loss while training',
      series,
      y_range=(max(0.0, low - 0.25), max(values) + 0.1),
      x_label='bytes read',
      references=references,
  )
  return (
      '<h2>Learning</h2><p class="soft">Bits per byte against text read; a'
      ' training point is one batch.</p>'
      f'<figure>{drawing}</figure>'
  )


def _reading(reading: Any) -> str:
  title = '<h2>The memory at work</h2>'
  if not reading:
    return f'{title}<p>The held-out text is too short for it.</p>'
  panels = [
      (name, reading[key])
      for name, key in (('Memory on', 'on'), ('Memory off', 'off'))
      if reading[key]
  ]
  # The same span in both panels, so that equal heights are equal differences.
  ranges = [_range(found) for _, found in panels]
  span = max(high - low for low, high in ranges)
  drawings = []
  for (name, found), (low, high) in zip(panels, ranges):
    middle = (low + high) / 2
    y_range = max(0.0, middle - span / 2), middle + span / 2
    drawing = _panel(name, found, y_range)
    drawings.append(f'<div><h3>{name}</h3>{drawing}</div>')
  rows = report.reading_rows(reading)
  return (
      f'{title}<p>{_safe(report.verdict(reading))}</p>'
      f'<figure class="pair">{"".join(drawings)}</figure>'
      '<p class="soft">Bits per byte of a passage. First: its first reading.'
      ' Carried: its second, the memory handed on. Reset: its second, the'
      ' memory made fresh before it. Control: after the same other bytes, the'
      ' passage never read. The panels have one scale, at different heights.'
      ' Bars are standard errors of differences, paired by passage: at carried'
      ' of that from reset, at control of that from carried. A difference is'
      ' called clear beyond two of them.</p>'
      f'{_table(rows)}'
  )


# The paired difference whose error a case shows: passages differ among
# themselves far more than one passage's readings do.
_ERRORS = {'carried': 'reset - carried', 'control': 'control - carried'}


def _errors(found: Any, case: str) -> list[float]:
  if case not in _ERRORS:
    return []
  return [difference['error'] for difference in found[_ERRORS[case]]]


def _range(found: Any) -> tuple[float, float]:
  every = [value['mean'] for case in report.CASES for value in found[case]]
  bar = max(max(_errors(found, case)) for case in _ERRORS)
  return min(every) - bar - 0.05, max(every) + bar + 0.05


def _panel(title: str, found: Any, y_range: tuple[float, float]) -> str:
  cases = [
      ('first', 'thin', 'first'),
      ('reset', 's2', 'reset'),
      ('control', 's1', 'control'),
      ('carried', 's0', 'carried'),
  ]
  if found['first'] == found['reset']:
    cases[:2] = [('first, reset', 's2', 'reset')]
  # Even steps: the distances grow too fast for a scale that has a zero.
  series = [
      charts.Line(
          name,
          style,
          [(i, value['mean']) for i, value in enumerate(found[case])],
          _errors(found, case),
          style != 'thin',
      )
      for name, style, case in cases
  ]
  ticks = [(i, f'{d:,}') for i, d in enumerate(found['distances'])]
  return charts.lines(
      title,
      series,
      y_range=y_range,
      x_label='other bytes between the readings',
      x_ticks=ticks,
      width=370,
      height=280,
      right=88,
  )


def _sample(sample: Any) -> str:
  return (
      '<h2>A sample</h2><p class="soft">The prompt is in bold.</p>'
      f'<pre><b>{_safe(sample["prompt"])}</b>'
      f'{_safe(report.printable(sample["text"]))}</pre>'
  )


def _levels(results: report.Results) -> str:
  if not results['levels']:
    return ''
  return (
      '<h2>Levels and their updates</h2><p class="soft">How often the outer'
      ' optimizer has changed each part: "base" is all but the Continuum Memory'
      ' System, level 0 its fastest level.</p>'
      + _table(report.level_rows(results))
  )


def _stability(results: report.Results) -> str:
  if not results['stability']:
    return ''
  return '<h2>Stability</h2>' + _table(report.stability_rows(results))


def _made(results: report.Results) -> str:
  facts = results['machine'] | {
      f'seconds, {name}': f'{seconds:.1f}'
      for name, seconds in results['seconds'].items()
  }
  config = json.dumps(results['config'], indent=2)
  return (
      '<h2>How this was made</h2>'
      + _table([('', ''), *((k, str(v)) for k, v in facts.items())])
      + '<details><summary>The configuration</summary>'
      f'<pre>{_safe(config)}</pre></details>'
  )


def _table(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table; the first row is its head, unless it is blank."""
  line = lambda row, tag: '<tr>' + ''.join(
      f'<{tag}>{_safe(cell)}</{tag}>' for cell in row
  ) + '</tr>'
  head = line(rows[0], 'th') if any(rows[0]) else ''
  body = ''.join(line(row, 'td') for row in rows[1:])
  return f'<div class="scroll"><table>{head}{body}</table></div>'
