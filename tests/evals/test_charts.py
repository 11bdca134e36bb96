"""Drawings that stand alone."""

import re
import xml.etree.ElementTree as ElementTree

from hope_jax.evals import charts


def test_a_heat_map_has_a_square_a_number():
  """If it fails, a result is not shown, or shown in another's place."""
  values = [[0.0, 0.5, 1.0], [0.25, 0.75, 0.1]]
  drawing = charts.document(charts.heat_map(
      'a < b', values, x_names=('1', '2', '3'), x_label='x',
      y_names=('u', 'v'), y_label='y',
  ))
  root = ElementTree.fromstring(drawing)
  assert root.get('aria-label') == 'a < b'
  name = '{http://www.w3.org/2000/svg}'
  squares = root.findall(f'{name}rect')
  texts = root.findall(f'{name}text')
  shown = [t.text for t in texts if 'value' in t.get('class').split()]
  assert shown == ['0', '50', '100', '25', '75', '10']
  assert len(squares) == 6
  shades = [float(s.get('fill-opacity')) for s in squares]
  assert shades[0] < shades[1] < shades[2]
  # Two rows, three columns, nothing outside the drawing.
  assert len({s.get('y') for s in squares}) == 2
  assert len({s.get('x') for s in squares}) == 3
  assert max(float(s.get('x')) + float(s.get('width')) for s in squares) <= 640


def test_a_document_brings_its_style():
  """If it fails, a figure in a README is black on black."""
  line = charts.Line('name', 's1', [(0, 1), (1, 2)])
  drawing = charts.document(
      charts.lines('title', [line], y_range=(0, 2), x_label='x')
  )
  assert drawing.startswith('<svg xmlns=')
  root = ElementTree.fromstring(drawing)
  style = root.find('{http://www.w3.org/2000/svg}style').text
  assert '.line.s1' in style


def test_series_have_colours_of_their_own():
  """If it fails, two lines of a figure look alike."""
  lines = [
      charts.Line(f'n{i}', charts.style(i), [(0, i), (1, i)]) for i in range(11)
  ]
  drawing = charts.document(
      charts.lines('title', lines, y_range=(0, 10), x_label='x')
  )
  colours = dict(re.findall(r' \.(s\d+) \{ fill: (#\w+);', drawing))
  assert len({colours[line.style] for line in lines}) == len(lines)
