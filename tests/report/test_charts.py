"""Charts: what is drawn, where, and that it is always the same."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np

from hope_jax.report import charts

SVG = '{http://www.w3.org/2000/svg}'


def texts(drawing):
  root = ElementTree.fromstring(drawing)
  return [''.join(node.itertext()) for node in root.iter(f'{SVG}text')]


def some_lines(**change):
  series = [
      charts.Line(f'n{i}', [(0, i), (1, i + 1), (2, 0)], marks=True, colour=i)
      for i in range(11)
  ]
  return charts.lines(
      'a < b', series, x=charts.Axis('steps'), y=charts.Axis('loss', (0, 12)),
      **change,
  )


def polylines(drawing):
  """The points of every line of a series, by colour."""
  found = {}
  for node in ElementTree.fromstring(drawing).iter(f'{SVG}path'):
    style = node.get('style', '')
    colour = re.search(r'stroke: (#\w+)', style)
    if colour and 'fill: none' in style and 'stroke-width: 1.6' in style:
      points = re.findall(r'[ML] ([-\d.]+) ([-\d.]+)', node.get('d'))
      found.setdefault(colour[1], []).append(np.array(points, float))
  return found


def test_the_same_numbers_give_the_same_bytes():
  """If it fails, every rendering changes every figure of the repository."""
  again = subprocess.run(
      [sys.executable, '-c', 'from tests.report import test_charts;'
       ' print(test_charts.some_lines(), end="")'],
      capture_output=True, text=True, check=True,
  ).stdout
  assert some_lines() == some_lines() == again
  assert '<dc:date>' not in again


def test_lines_are_where_their_numbers_say():
  """If it fails, a figure shows other numbers than its table."""
  series = [
      charts.Line('up', [(0, 0), (1, 5), (2, 10)], colour=0),
      charts.Line('flat', [(0, 5), (2, 5)], colour=1),
  ]
  drawing = charts.lines(
      't', series, x=charts.Axis('x'), y=charts.Axis('y', (0, 10))
  )
  found = polylines(drawing)
  # The first of a colour is the line, the other its sign in the legend.
  up, flat = (found[charts.COLOURS[i]][0] for i in (0, 1))
  np.testing.assert_allclose(up[1], up[[0, 2]].mean(0), atol=1e-3)
  assert up[0, 1] > up[2, 1]  # SVG counts from the top
  np.testing.assert_allclose(flat[:, 1], up[1, 1], atol=1e-3)
  np.testing.assert_allclose(flat[:, 0], up[[0, 2], 0], atol=1e-3)


def test_what_is_drawn_is_named():
  """If it fails, a reader cannot tell which line is whose, or of what."""
  drawing = some_lines(references=[('trigram', 2.5)])
  shown = texts(drawing)
  assert {f'n{i}' for i in range(11)} < set(shown)
  assert {'steps', 'loss', 'a < b', 'trigram'} < set(shown)
  root = ElementTree.fromstring(drawing)
  assert root.get('role') == 'img' and root.get('aria-label') == 'a < b'
  colours = re.findall(r'stroke: (#\w+)', drawing)
  assert len(set(colours) & set(charts.COLOURS)) == 11


def test_a_heat_map_has_a_square_a_number():
  """If it fails, a result is not shown, or shown in another's place."""
  values = [[0.0, 0.5, 1.0], [0.25, 0.75, 0.1]]
  drawing = charts.heat_map(
      'a < b', values, x_names=('1K', '2K', '3K'), x_label='x',
      y_names=('u', 'v'), y_label='y',
  )
  shown = texts(drawing)
  numbers = [text for text in shown if text.isdigit()]
  assert numbers == ['0', '50', '100', '25', '75', '10']
  assert {'1K', '2K', '3K', 'x', 'u', 'v', 'y', 'a < b'} < set(shown)
  # From the top, as a table.
  spot = {
      ''.join(node.itertext()): (float(node.get('x')), float(node.get('y')))
      for node in ElementTree.fromstring(drawing).iter(f'{SVG}text')
  }
  assert spot['0'][1] < spot['25'][1]
  assert spot['0'][0] < spot['50'][0] < spot['100'][0]
  # The darker the more, in the same order.
  fills = re.findall(r'clip-path="[^"]*" style="fill: (#\w{6})', drawing)
  shares = [x for row in values for x in row]
  low, high = (int(shade[1:3], 16) for shade in charts.SHADES)
  np.testing.assert_allclose(
      [int(fill[1:3], 16) for fill in fills],
      [low + x * (high - low) for x in shares], atol=1.5,
  )


def test_bars_carry_their_values():
  """If it fails, a bar's length has to be guessed."""
  drawing = charts.bars('t', [('a', 2.0), ('mine', 1.5)], own='mine')
  assert {'a', 'mine', '2.000', '1.500'} < set(texts(drawing))
  assert charts.COLOURS[0] in drawing


def test_panels_share_their_axes():
  """If it fails, two paths that look alike are not."""
  parts = [
      (name, [charts.Line('', [(0, 0), (1, top)], colour=i)])
      for i, (name, top) in enumerate((('a', 1), ('b', 2), ('c', 4)))
  ]
  drawing = charts.panels(
      't', parts, x=charts.Axis('r'), y=charts.Axis('theta')
  )
  assert {'a', 'b', 'c', 'r', 'theta'} < set(texts(drawing))
  found = polylines(drawing)
  heights = [
      np.ptp(found[charts.COLOURS[i]][0][:, 1]) for i in range(len(parts))
  ]
  np.testing.assert_allclose(
      np.array(heights) / heights[0], [1, 2, 4], rtol=1e-3
  )


def test_a_logarithmic_axis_says_its_numbers_plainly():
  """If it fails, a loss is labelled as a power, or equal factors differ."""
  line = charts.Line('', [(0, 0.01), (1, 0.1), (2, 1.0)], colour=0)
  drawing = charts.lines(
      't', [line], x=charts.Axis('x'), y=charts.Axis('y', log=True)
  )
  assert {'0.01', '0.1', '1'} < set(texts(drawing))
  heights = polylines(drawing)[charts.COLOURS[0]][0][:, 1]
  np.testing.assert_allclose(*-np.diff(heights), rtol=1e-3)
