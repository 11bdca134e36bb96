"""The report of a run as one HTML file that needs nothing beside it."""

import base64
import json
import pathlib
from typing import Any, NamedTuple

import jinja2

from hope_jax.report import charts, text


class Chart(NamedTuple):
  """A drawing, and what it says to those who do not see it."""

  svg: str
  alt: str


def _base64(svg: str) -> str:
  return base64.b64encode(svg.encode()).decode()


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      # A sample is a program; as markup it would vanish, or run.
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      keep_trailing_newline=True,
  )
  environment.filters['base64'] = _base64
  return environment.get_template('page.html')


def as_html(results: text.Results) -> str:
  """Returns the page; it refers to nothing outside itself.

  Args:
    results: as described in `report.text`.
  """
  name, reading = text.model_name(results), results['second_reading']
  sample = results['sample']
  facts = results['machine'] | {
      f'seconds, {part}': f'{seconds:.1f}'
      for part, seconds in results['seconds'].items()
  }
  return _template().render(
      name=name,
      headline=text.headline(results),
      tiles=_tiles(results),
      heldout=_heldout(results, name),
      note_on_heldout=text.note_on_heldout(results),
      curve=_curve(results),
      reading=text.reading_rows(reading) if reading else None,
      verdict=text.verdict(reading) if reading else '',
      panels=_panels(reading) if reading else [],
      sample=sample | {'text': text.printable(sample['text'])},
      levels=text.level_rows(results) if results['levels'] else None,
      stability=text.stability_rows(results) if results['stability'] else None,
      facts=[('fact', 'value'), *((k, str(v)) for k, v in facts.items())],
      config=json.dumps(results['config'], indent=2),
  )


def _tiles(results: text.Results) -> list[tuple[str, str]]:
  """What is said first: a number, and what it is."""
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
    took = f' in {text.duration(results["seconds"]["training"])}'
  tiles.append((
      text.shorten(training['bytes']) + 'B',
      f'of text read{took} on {results["machine"]["device"]}',
  ))
  return tiles


def _heldout(results: text.Results, name: str) -> Chart:
  items = [(name, results['heldout']['bits_per_byte'])]
  items += results['baselines'].items()
  items.sort(key=lambda item: -item[1])
  title = 'Held-out bits per byte'
  said = ', '.join(f'{name} {bits:.3f}' for name, bits in items)
  return Chart(charts.bars(title, items, own=name), f'{title}: {said}')


def _curve(results: text.Results) -> Chart | None:
  by_split = {'train': [], 'heldout': []}
  for record in results['curve']:
    by_split[record['split']].append(
        (record['bytes'], record['bits_per_byte'])
    )
  series = [
      charts.Line(name, points, marks=marks, colour=colour)
      for name, points, marks, colour in (
          ('training', by_split['train'], False, None),
          ('held out', by_split['heldout'], True, 0),
      )
      if points
  ]
  if not series:
    return None
  values = [y for line in series for _, y in line.points]
  references = [
      (name, bits)
      for name, bits in results['baselines'].items()
      if name in ('trigram', 'gzip -9')
  ]
  low = min(values + [bits for _, bits in references])
  title = 'Loss while training'
  drawing = charts.lines(
      title,
      series,
      x=charts.Axis('bytes read', thousands=True),
      y=charts.Axis('bits per byte', (max(0.0, low - 0.25), max(values) + 0.1)),
      references=references,
  )
  said = ', '.join(
      f'{line.name} from {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}'
      for line in series
  )
  return Chart(drawing, f'{title}: {said} bits per byte')


# The paired difference whose error a case shows: passages differ among
# themselves far more than one passage's readings do.
_ERRORS = {'carried': 'reset - carried', 'control': 'control - carried'}


def _errors(found: Any, case: str) -> list[float]:
  if case not in _ERRORS:
    return []
  return [difference['error'] for difference in found[_ERRORS[case]]]


def _panels(reading: Any) -> list[Chart]:
  """The second reading with the memory on and, where there is one, off."""
  parts = [
      (title, reading[key])
      for title, key in (('Memory on', 'on'), ('Memory off', 'off'))
      if reading[key]
  ]
  # The same height in both, so that equal heights are equal differences.
  ranges = [_range(found) for _, found in parts]
  height = max(high - low for low, high in ranges)
  drawn = []
  for (title, found), (low, high) in zip(parts, ranges):
    middle = (low + high) / 2
    limits = max(0.0, middle - height / 2), middle + height / 2
    drawn.append(_panel(title, found, limits))
  return drawn


def _range(found: Any) -> tuple[float, float]:
  every = [value['mean'] for case in text.CASES for value in found[case]]
  bar = max(max(_errors(found, case)) for case in _ERRORS)
  return min(every) - bar - 0.05, max(every) + bar + 0.05


def _panel(title: str, found: Any, limits: tuple[float, float]) -> Chart:
  cases = [
      ('first', 'first', None),
      ('reset', 'reset', 2),
      ('control', 'control', 1),
      ('carried', 'carried', 0),
  ]
  if found['first'] == found['reset']:
    cases[:2] = [('first, reset', 'reset', 2)]
  # Even steps: the distances grow too fast for a scale that has a zero.
  series = [
      charts.Line(
          name,
          [(i, value['mean']) for i, value in enumerate(found[case])],
          _errors(found, case),
          colour is not None,
          colour,
      )
      for name, case, colour in cases
  ]
  means = {
      name: ' '.join(f'{value["mean"]:.3f}' for value in found[case])
      for name, case, _ in cases
  }
  said = ', '.join(f'{name} {values}' for name, values in means.items())
  distances = [f'{distance:,}' for distance in found['distances']]
  drawing = charts.lines(
      title,
      series,
      x=charts.Axis(
          'other bytes between the readings', ticks=list(enumerate(distances))
      ),
      y=charts.Axis('bits per byte', limits),
      width=4.4,
      height=3.0,
  )
  after = ', '.join(distances)
  return Chart(
      drawing, f'{title}, bits per byte after {after} other bytes: {said}'
  )
