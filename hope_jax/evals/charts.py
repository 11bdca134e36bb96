"""Charts, drawn as inline SVG.

Colours, fonts and strokes are left to the style sheet of the page (classes
`axis`, `grid`, `s0`, `s1`, ...), so that one drawing serves light and dark.
`document` makes a file of a drawing, with a style sheet of its own.
"""

from collections.abc import Callable, Sequence
import html
import math
from typing import NamedTuple

WIDTH = 640
# Of drawings that stand alone: mid tones that can be read on white and black.
_COLOURS = (
    '#1f8fc0', '#d9730d', '#8a939b', '#7f68d0', '#2e9e6b', '#d05a6e', '#b08a2e',
    '#c060b0', '#2aa5a0', '#6f8f2a', '#a0705a',
)
_STYLE = (
    'svg { font: 13px system-ui, sans-serif; fill: #7a858e; }'
    ' .grid { stroke: #8a939b; stroke-opacity: .3; }'
    ' .reference { stroke: #8a939b; stroke-dasharray: 2 4; }'
    ' .line { fill: none; stroke-width: 2.25; }'
    ' .error { stroke-width: 1.5; } .value.on { fill: #fff; }'
    + ''.join(
        f' .s{i} {{ fill: {c}; }} .line.s{i}, .error.s{i}'
        f' {{ fill: none; stroke: {c}; }}'
        for i, c in enumerate(_COLOURS)
    )
)


def style(number: int) -> str:
  """The CSS class of the n-th series; there are eleven colours."""
  return f's{number % len(_COLOURS)}'


class Line(NamedTuple):
  """A series of a line chart."""

  name: str  # shown where the line ends; '' for none
  style: str  # CSS class
  points: Sequence[tuple[float, float]]
  errors: Sequence[float] = ()  # half the length of each error bar
  marks: bool = False  # draw the points


class Bar(NamedTuple):
  """A bar, its name on the left and its value at its end."""

  name: str
  style: str
  value: float


def bars(title: str, items: Sequence[Bar], *, width: int = WIDTH) -> str:
  """Draws horizontal bars from zero.

  Args:
    title: what a screen reader says.
    items: the bars, from the top.
    width: of the drawing, in user units.
  """
  row, left, right = 34, 96, 64
  longest = max(item.value for item in items)
  parts = []
  for i, item in enumerate(items):
    y = i * row
    length = max(item.value, 0) / longest * (width - left - right)
    parts.append(
        _text(left - 12, y + 21, item.name, f'name {item.style}', 'end')
        + f'<rect class="bar {item.style}" x="{left}" y="{y + 5}" rx="3"'
        f' width="{length:.1f}" height="{row - 12}"/>'
        + _text(left + length + 8, y + 21, f'{item.value:.3f}', 'value')
    )
  return _svg(title, width, len(items) * row, parts)


def lines(
    title: str,
    series: Sequence[Line],
    *,
    y_range: tuple[float, float],
    x_label: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    references: Sequence[tuple[str, float]] = (),
    width: int = WIDTH,
    height: int = 300,
    right: int = 96,
) -> str:
  """Draws lines over a common pair of axes.

  Args:
    title: what a screen reader says.
    series: the lines; each has its name written at its end.
    y_range: the lowest and the highest y shown.
    x_label: what x is.
    x_ticks: places and names; None chooses round ones.
    references: names and heights of dashed lines across.
    width: of the drawing, in user units.
    height: of the drawing, in user units.
    right: room for the names at the right.
  """
  left, top, bottom = 44, 12, 46
  every_x = [x for line in series for x, _ in line.points]
  x_low, x_high = min(every_x), max(every_x)
  place_x = _scale(x_low, x_high, left + 6, width - right)
  place_y = _scale(*y_range, height - bottom, top)
  parts = []
  for tick in round_ticks(*y_range):
    y = place_y(tick)
    parts.append(
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}"'
        f' y2="{y:.1f}"/>' + _text(left - 8, y + 4, f'{tick:g}', 'tick', 'end')
    )
  if x_ticks is None:
    x_ticks = [(x, shorten(x)) for x in round_ticks(x_low, x_high)]
  for x, name in x_ticks:
    parts.append(
        _text(place_x(x), height - bottom + 20, name, 'tick', 'middle')
    )
  middle = (left + width - right) / 2
  parts.append(_text(middle, height - 6, x_label, 'label', 'middle'))
  names = []
  for name, value in references:
    y = place_y(value)
    parts.append(
        f'<line class="reference" x1="{left}" x2="{width - right}"'
        f' y1="{y:.1f}" y2="{y:.1f}"/>'
    )
    names.append((y, name, 'tick'))
  for line in series:
    places = [(place_x(x), place_y(y)) for x, y in line.points]
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in places)
    parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
    for (x, _), (_, value), error in zip(places, line.points, line.errors):
      low, high = place_y(value - error), place_y(value + error)
      parts.append(
          f'<line class="error {line.style}" x1="{x:.1f}" x2="{x:.1f}"'
          f' y1="{low:.1f}" y2="{high:.1f}"/>'
      )
    if line.marks:
      parts += [
          f'<circle class="mark {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
          for x, y in places
      ]
    if line.name and places:
      names.append((places[-1][1], line.name, f'name {line.style}'))
  for y, name, style in _spread(names, top, height - bottom):
    parts.append(_text(width - right + 10, y + 4, name, style))
  return _svg(title, width, height, parts)


def heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    *,
    x_names: Sequence[str],
    x_label: str,
    y_names: Sequence[str],
    y_label: str,
    width: int = WIDTH,
) -> str:
  """Draws a table of shares as squares, the darker the more, with percents.

  Args:
    title: what a screen reader says.
    values: rows of shares in [0, 1], from the top.
    x_names: of the columns.
    x_label: what x is.
    y_names: of the rows.
    y_label: what y is.
    width: of the drawing, in user units.
  """
  left, top, row = 64, 22, 34
  column = (width - left) / len(x_names)
  parts = [_text(left - 12, 14, y_label, 'label', 'end')]
  for i, (name, shares) in enumerate(zip(y_names, values)):
    y = top + i * row
    parts.append(_text(left - 12, y + 21, name, 'tick', 'end'))
    for j, share in enumerate(shares):
      x = left + j * column
      parts.append(
          f'<rect class="heat s0" x="{x + 1:.1f}" y="{y + 1}"'
          f' width="{column - 2:.1f}" height="{row - 2}"'
          f' fill-opacity="{0.08 + 0.92 * share:.3f}"/>'
          + _text(
              x + column / 2, y + 21, f'{100 * share:.0f}',
              'value on' if share > 0.5 else 'value', 'middle',
          )
      )
  bottom = top + len(y_names) * row
  for j, name in enumerate(x_names):
    x = left + (j + 0.5) * column
    parts.append(_text(x, bottom + 18, name, 'tick', 'middle'))
  middle = (left + width) / 2
  parts.append(_text(middle, bottom + 38, x_label, 'label', 'middle'))
  return _svg(title, width, bottom + 46, parts)


def document(drawing: str) -> str:
  """Returns a drawing as an SVG file."""
  opening = '<svg xmlns="http://www.w3.org/2000/svg" '
  style = f'><style>{_STYLE}</style>'
  return drawing.replace('<svg ', opening, 1).replace('>', style, 1)


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
  """Returns round numbers in [low, high], some `about` of them."""
  if high <= low:
    return [low]
  rough = (high - low) / about
  power = 10.0 ** math.floor(math.log10(rough))
  step = min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / rough)))
  step *= power
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 10) for i in range(first, last + 1)]


def shorten(number: float) -> str:
  """Returns a number with a letter for its thousands: 1500000 -> 1.5 M."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(number) >= size:
      return f'{number / size:.3g} {letter}'
  return f'{number:.3g}'


def _scale(
    low: float, high: float, start: float, end: float
) -> Callable[[float], float]:
  """Returns the map of [low, high] to [start, end], held to its ends."""
  span = (high - low) or 1.0
  share = lambda value: min(max((value - low) / span, 0.0), 1.0)
  return lambda value: start + share(value) * (end - start)


def _spread(
    names: Sequence[tuple[float, str, str]], top: float, bottom: float
) -> list[tuple[float, str, str]]:
  """Moves names apart until none covers another."""
  gap, placed = 15.0, []
  for y, name, style in sorted(names):
    if placed:
      y = max(y, placed[-1][0] + gap)
    placed.append((max(y, top), name, style))
  # What was pushed over the edge goes back, and pushes what is above it.
  limit = bottom
  for i in reversed(range(len(placed))):
    y, name, style = placed[i]
    placed[i] = (min(y, limit), name, style)
    limit = placed[i][0] - gap
  return placed


def _text(
    x: float, y: float, text: str, style: str, anchor: str = 'start'
) -> str:
  return (
      f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"'
      f' text-anchor="{anchor}">{html.escape(text)}</text>'
  )


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
  return (
      f'<svg viewBox="0 0 {width} {height}" role="img"'
      f' aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
  )
