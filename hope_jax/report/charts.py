"""Charts as SVG, drawn by matplotlib: the same numbers give the same bytes.

Mid tones on no background, to be read on white and on black. Text stays text,
which can be searched and is small.
"""

from collections.abc import Iterator, Sequence
import contextlib
import html
import io
from typing import Any, NamedTuple

import matplotlib
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
  EngFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
  StrMethodFormatter,
)

COLOURS = (
    '#1f8fc0', '#d9730d', '#8a939b', '#7f68d0', '#2e9e6b', '#d05a6e', '#b08a2e',
    '#c060b0', '#2aa5a0', '#6f8f2a', '#a0705a',
)
_MARKERS = 'osD^vP<X>ph'
SHADES = ('#eaf4f9', '#1678a3')  # of a share of 0 and of 1
_INK, _SOFT, _DARK = '#7a858e', '#a9b1b8', '#1d2328'
_STYLE: Any = {
    'svg.fonttype': 'none',
    # Names of clip paths and marks are made of it, and otherwise of chance.
    'svg.hashsalt': 'hope_jax',
    'figure.constrained_layout.use': True,
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],
    'font.size': 9,
    'text.color': _INK,
    'axes.edgecolor': _SOFT,
    'axes.labelcolor': _INK,
    'axes.titlelocation': 'left',
    'axes.titlesize': 9.5,
    'axes.grid': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': _SOFT,
    'grid.alpha': 0.3,
    'xtick.color': _INK,
    'ytick.color': _INK,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
}
WIDTH = 7.0  # inches


class Line(NamedTuple):
  """A series of a line chart."""

  name: str  # in the legend; '' for none
  points: Sequence[tuple[float, float]]
  errors: Sequence[float] = ()  # half the length of each error bar
  marks: bool = False  # draw the points
  colour: int | None = None  # of `COLOURS`; None: soft, for what is beside


class Axis(NamedTuple):
  """What is along an axis."""

  label: str = ''
  limits: tuple[float, float] | None = None  # None: those of the numbers
  ticks: Sequence[tuple[float, str]] | None = None  # None: round numbers
  thousands: bool = False  # 1500000 as 1.5 M
  log: bool = False  # equal factors are equal distances


def lines(
    title: str,
    series: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    references: Sequence[tuple[str, float]] = (),
    width: float = WIDTH,
    height: float = 3.2,
) -> str:
  """Draws lines over a common pair of axes.

  Args:
    title: what stands above it.
    series: the lines.
    x: the axis to the right.
    y: the axis upwards.
    references: names and heights of dotted lines across.
    width: of the drawing, in inches.
    height: of the drawing, in inches.
  """
  with _drawing(title, width, height) as drawing:
    axes = drawing.figure.add_subplot()
    axes.set_title(title)
    for name, value in references:
      axes.axhline(value, color=_SOFT, linestyle=':')
      axes.annotate(
          name, (1, value), (4, 0), xycoords=('axes fraction', 'data'),
          textcoords='offset points', va='center',
      )
    for line in series:
      _draw(axes, line)
    _label(axes, x, y)
    if any(line.name for line in series):
      drawing.figure.legend(loc='outside right center', frameon=False)
  return drawing.svg


def panels(
    title: str,
    parts: Sequence[tuple[str, Sequence[Line]]],
    *,
    x: Axis,
    y: Axis,
    columns: int = 2,
) -> str:
  """Draws charts side by side that share their axes.

  Args:
    title: what a screen reader says.
    parts: what stands above each chart, and its lines.
    x: the axis to the right of all.
    y: the axis upwards of all.
    columns: charts in a row.
  """
  rows = -(-len(parts) // columns)
  with _drawing(title, WIDTH, 0.4 + 1.8 * rows) as drawing:
    grid = drawing.figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False
    )
    for i in range(len(parts), grid.size):
      grid.flat[i].remove()
      # The one above is now the lowest of its column.
      grid.flat[i - columns].tick_params(labelbottom=True)
    for axes, (name, series) in zip(grid.flat, parts):
      axes.set_title(name)
      for line in series:
        _draw(axes, line)
      _label(axes, x._replace(label=''), y._replace(label=''))
    drawing.figure.supxlabel(x.label, color=_INK, size=9)
    drawing.figure.supylabel(y.label, color=_INK, size=9)
  return drawing.svg


def bars(title: str, items: Sequence[tuple[str, float]], own: str) -> str:
  """Draws horizontal bars from zero, the first on top.

  Args:
    title: what stands above it.
    items: name and value of each.
    own: the name that is to stand out.
  """
  names, values = zip(*items)
  with _drawing(title, WIDTH, 0.6 + 0.34 * len(items)) as drawing:
    axes = drawing.figure.add_subplot()
    axes.set_title(title)
    drawn = axes.barh(
        range(len(items)), values, height=0.65,
        color=[COLOURS[0] if name == own else _SOFT for name in names],
    )
    axes.bar_label(drawn, fmt='%.3f', padding=4, color=_INK)
    axes.set_yticks(range(len(items)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(values))
    axes.grid(visible=False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
  return drawing.svg


def heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    *,
    x_names: Sequence[str],
    x_label: str,
    y_names: Sequence[str],
    y_label: str,
) -> str:
  """Draws a table of shares as squares, the darker the more, with percents.

  Args:
    title: what stands above it.
    values: rows of shares in [0, 1], from the top.
    x_names: of the columns.
    x_label: what x is.
    y_names: of the rows.
    y_label: what y is.
  """
  # Opaque, so that the numbers are read on any page.
  shades = colors.LinearSegmentedColormap.from_list('shares', SHADES)
  with _drawing(title, WIDTH, 0.9 + 0.32 * len(y_names)) as drawing:
    axes = drawing.figure.add_subplot()
    axes.set_title(title)
    axes.pcolormesh(
        values, cmap=shades, vmin=0, vmax=1, edgecolors='none', linewidth=0
    )
    for i, shares in enumerate(values):
      for j, share in enumerate(shares):
        axes.text(
            j + 0.5, i + 0.5, f'{100 * share:.0f}', ha='center', va='center',
            color='white' if share > 0.6 else _DARK,
        )
    axes.set_xticks([j + 0.5 for j in range(len(x_names))], x_names)
    axes.set_yticks([i + 0.5 for i in range(len(y_names))], y_names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(left=False, bottom=False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=x_label, ylabel=y_label)
  return drawing.svg


def _draw(axes: Axes, line: Line) -> None:
  number = line.colour
  colour = _SOFT if number is None else COLOURS[number % len(COLOURS)]
  marker = _MARKERS[(number or 0) % len(_MARKERS)] if line.marks else None
  x, y = zip(*line.points) if line.points else ((), ())
  axes.errorbar(
      x, y, yerr=line.errors or None, color=colour, marker=marker,
      elinewidth=1.0, label=line.name or None,
  )


def _label(axes: Axes, x: Axis, y: Axis) -> None:
  axes.set(xlabel=x.label, ylabel=y.label)
  for axis, place, limit, scale in (
      (x, axes.xaxis, axes.set_xlim, axes.set_xscale),
      (y, axes.yaxis, axes.set_ylim, axes.set_yscale),
  ):
    if axis.log:
      scale('log')
      place.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
      place.set_major_formatter(StrMethodFormatter('{x:g}'))
      place.set_minor_locator(NullLocator())
    if axis.limits:
      # A line at the border is seen in its full width.
      margin = 0.03 * (axis.limits[1] - axis.limits[0])
      limit(axis.limits[0] - margin, axis.limits[1] + margin)
    if axis.ticks is not None:
      place.set_ticks(*zip(*axis.ticks))
    elif not axis.log:
      place.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
      if axis.thousands:
        place.set_major_formatter(EngFormatter(sep=' '))


class _Drawing:
  """A figure, and once it is done its SVG."""

  def __init__(self, figure: Figure):
    self.figure = figure
    self.svg = ''


@contextlib.contextmanager
def _drawing(title: str, width: float, height: float) -> Iterator[_Drawing]:
  with matplotlib.rc_context(_STYLE):
    drawing = _Drawing(Figure(figsize=(width, height)))
    yield drawing
    file = io.StringIO()
    drawing.figure.savefig(
        file, format='svg', transparent=True, metadata={'Date': None}
    )
  svg = file.getvalue()
  # Trailing blanks, which editors and git take away.
  svg = '\n'.join(line.rstrip() for line in svg.splitlines()) + '\n'
  label = f'<svg role="img" aria-label="{html.escape(title)}" '
  drawing.svg = svg.replace('<svg ', label, 1)
