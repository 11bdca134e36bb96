"""Draws docs/memory.svg, the picture of the README, from committed results.

  python docs/draw.py [FILE]
"""

import json
import pathlib
import sys

from matplotlib import pyplot as plt

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parent / 'experiments' / 'results'
INK, BLUE, ORANGE, GREY = '#222222', '#1f5fa8', '#c9540f', '#8a8a8a'


def minutes(results):
  """How long a quickstart took in all."""
  return round(results['seconds']['total'] / 60)


def learning(axes, long, short):
  """Held-out bits per byte while training, beside what needs no training.

  On the way a small sample is measured. The last point, larger, is the measure
  of the trained model on the held-out text, or half of it: docs/results.md.
  """
  for results, color, label in (
      (long, BLUE, 'printed layer'), (short, ORANGE, 'Hope'),
  ):
    curve = [p for p in results['curve'] if p['split'] == 'heldout']
    size = [p['bytes'] / 1e6 for p in curve]
    bits = [p['bits_per_byte'] for p in curve]
    bits[-1] = results['heldout']['bits_per_byte']
    axes.plot(size, bits, marker='o', markersize=3, color=color)
    axes.plot(size[-1], bits[-1], marker='o', color=color,
              label=f'{label}, {minutes(results)} minutes: {bits[-1]:.2f}')
  right = axes.get_xlim()[1]
  for name in ('trigram', 'gzip -9', 'xz -9'):
    bits = long['baselines'][name]
    axes.axhline(bits, color=GREY, linewidth=0.8, linestyle='--')
    axes.text(right, bits, f'{name} {bits:.2f}', color=GREY, va='bottom',
              ha='right', fontsize=8)
  axes.set(xlabel='MB read in training', ylabel='held-out bits per byte',
           title='Reading: 1 M parameters')
  # Between two of the dashed lines.
  axes.legend(frameon=False, fontsize=8, loc='upper right',
              bbox_to_anchor=(1, 0.91))


def recall(axes, short):
  """What a carried memory saves on a passage that it has read before."""
  bars = (('on', BLUE, 'memory'), ('off', GREY, 'memory off'))
  for i, (form, color, label) in enumerate(bars):
    reading = short['second_reading'][form]
    saved = reading['control - carried']
    centres = [x + 0.36 * (i - 0.5) for x in range(len(saved))]
    axes.bar(
        centres, [s['mean'] for s in saved], 0.34, color=color, label=label,
        yerr=[s['error'] for s in saved], ecolor=INK, capsize=2,
    )
    if form == 'on':
      for x, s in zip(centres, saved):
        axes.text(x, s['mean'] + s['error'] + 0.004, f'{s["mean"]:.2f}',
                  ha='center', fontsize=8)
  distances = [f'{d:,}' for d in reading['distances']]
  axes.set_xticks(range(len(distances)), distances)
  axes.axhline(0, color=INK, linewidth=0.8)
  axes.set(xlabel='other bytes read in between', ylim=(-0.02, 0.39),
           ylabel='bits per byte saved',
           title='Remembering: a passage read again')
  axes.legend(frameon=False, fontsize=8)


def main(path: str) -> None:
  # Text stays text, and the same numbers give the same bytes.
  plt.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'hope_jax',
                       'font.family': 'sans-serif', 'font.size': 9,
                       'axes.titlesize': 10})
  long, short = (
      json.loads((RESULTS / f'quickstart_{form}.json').read_text())
      for form in ('hour', 'five_minutes')
  )
  figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
  learning(left, long, short)
  recall(right, short)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
  figure.tight_layout(w_pad=2.5)
  figure.savefig(path, metadata={'Date': None}, transparent=False)
  if path.endswith('.svg'):  # Matplotlib leaves blanks at the ends of lines.
    file = pathlib.Path(path)
    lines = file.read_text().splitlines()
    file.write_text('\n'.join(line.rstrip() for line in lines) + '\n')


if __name__ == '__main__':
  main(sys.argv[1] if len(sys.argv) > 1 else str(HERE / 'memory.svg'))
