"""What a run has shown, from a dict of results to text.

The results, as the quickstart writes them to report.json:

- heldout: bits_per_byte, bytes (measured), of_bytes (there are)
- baselines: bits per byte by name, on all held-out bytes
- curve: records of split ('train', 'heldout'), step, bytes and bits_per_byte
- second_reading: {'on': ..., 'off': ...}, what `evals.second_reading` measures
  with the memory on and off; None where there was too little text, and
  'off': None for a model without memories to switch off
- sample: prompt and text
- training: architecture, parameters, from_step, step, steps, stopped, bytes
- levels: name, period and updates of each level of the outer optimizer
- stability: diagnostics of the last training step logged, by name
- machine, config, seconds: by name

Every sentence about them is made here from the numbers, by one rule: a
difference is called one where it is more than twice its standard error.
"""

from collections.abc import Mapping, Sequence
import textwrap
from typing import Any

Results = Mapping[str, Any]

# What the diagnostics of a training step mean, and the statistic shown.
STABILITY = {
    'max_write/max': 'largest write, eta |k|^2 (stable up to 1)',
    'mean_alpha/mean': 'mean retention alpha, a token',
    'mean_eta/mean': 'mean inner learning rate eta',
    'state_norm/max': 'largest norm of a memory, end of sequence',
    'grad_norm': 'norm of the outer gradient, before clipping',
}
CASES = ('first', 'carried', 'reset', 'control')


def as_text(results: Results) -> str:
  """Returns the report as text of at most 80 columns."""
  parts = [_wrap(headline(results)), _table(heldout_rows(results))]
  parts.append(_wrap(note_on_heldout(results)))
  reading = results['second_reading']
  if reading:
    parts += [_table(reading_rows(reading)), _wrap(verdict(reading))]
  else:
    parts.append('Second reading: the held-out text is too short for it.')
  if results['levels']:
    parts.append(_table(level_rows(results)))
  if results['stability']:
    parts.append(_table(stability_rows(results)))
  sample = results['sample']
  lines = printable(sample['prompt'] + sample['text']).splitlines()[:12]
  parts.append('\n  | '.join(['A sample:', *(line[:76] for line in lines)]))
  return '\n\n'.join(parts)


def model_name(results: Results) -> str:
  """Returns the architecture as a name: 'Hope attention'."""
  return results['training']['architecture'].replace('_', ' ').capitalize()


def headline(results: Results) -> str:
  """Returns what was trained, on how much, for how long."""
  training = results['training']
  seconds = results['seconds']
  words = (
      f'{model_name(results)}, {training["parameters"]:,} parameters:'
      f' {training["step"]} of {training["steps"]} steps,'
      f' {training["bytes"]:,.0f} bytes read.'
      f' Training took {duration(seconds["training"])}, everything together'
      f' {duration(seconds["total"])}.'
  )
  if training['from_step']:
    words += f' Times are those since step {training["from_step"]}.'
  if training['step'] < training['steps']:
    words += (
        ' Time was up before the learning rate had come down; with more of it'
        ' the numbers would be better.'
    )
  return words


def heldout_rows(results: Results) -> list[tuple[str, ...]]:
  """Returns names and held-out bits per byte, the run's own first."""
  own = model_name(results), results['heldout']['bits_per_byte']
  rows = [own, *results['baselines'].items()]
  return [
      ('held-out text', 'bits per byte'),
      *((name, f'{bits:.3f}') for name, bits in rows),
  ]


def note_on_heldout(results: Results) -> str:
  """Returns what the held-out numbers were measured on, in a sentence."""
  heldout = results['heldout']
  if heldout['bytes'] >= heldout['of_bytes']:
    measured = f'all {heldout["of_bytes"]:,.0f} held-out bytes'
  else:
    measured = (
        f'{heldout["bytes"]:,.0f} of the {heldout["of_bytes"]:,.0f} held-out'
        ' bytes, a random sample of rows'
    )
  length = results['config']['data']['sequence_length']
  return (
      f'The model was measured on {measured}, with a fresh memory every'
      f' {length} tokens; the others on all of them, n-grams fitted on the'
      ' whole training text, gzip and xz learning as they go.'
  )


def reading_rows(reading: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the table of the second reading, in bits per byte."""
  rows: list[tuple[str, ...]] = [
      ('memory', 'bytes between', *CASES, 'reset - carried')
  ]
  for name in ('on', 'off'):
    found = reading[name]
    if found:
      for i, distance in enumerate(found['distances']):
        values = [f'{found[case][i]["mean"]:.3f}' for case in CASES]
        gain = with_error(found['reset - carried'][i])
        rows.append((name, f'{distance:,}', *values, gain))
  return rows


def level_rows(results: Results) -> list[tuple[str, ...]]:
  """Returns the table of update counts."""
  rows = [
      (level['name'], str(level['period']), f'{level["updates"]:,}')
      for level in results['levels']
  ]
  return [('level', 'period in steps', 'updates'), *rows]


def stability_rows(results: Results) -> list[tuple[str, ...]]:
  """Returns the table of diagnostics."""
  rows = [
      (text, f'{results["stability"][name]:.4g}')
      for name, text in STABILITY.items()
      if name in results['stability']
  ]
  return [('stability, last step logged', 'value'), *rows]


def verdict(reading: Mapping[str, Any]) -> str:
  """Returns what the second reading shows, and no more than that."""
  on, off = reading['on'], reading['off']
  text = (
      f'A second reading of {on["passages"]} passages of'
      f' {on["passage_bytes"]:.0f} bytes with the memory carried: next to one'
      f' with it reset, {_compare(on, "reset - carried")}; next to the control,'
      ' which has read the same other bytes and never the passage,'
      f' {_compare(on, "control - carried")}.'
  )
  if off:
    largest = max(abs(d['mean']) for d in off['reset - carried'])
    text += (
        ' With the memory off, carried and reset differ by'
        f' {largest:.3f} bits per byte at most.'
    )
  return text


def _compare(found: Mapping[str, Any], name: str) -> str:
  """Returns 'it costs 0.1 bits per byte less after 0 other bytes' and so on."""
  by_kind = {}
  for distance, difference in zip(found['distances'], found[name]):
    mean, error = difference['mean'], difference['error']
    kind = ''
    if abs(mean) > 2 * error:
      kind = 'less' if mean > 0 else 'more'
    by_kind.setdefault(kind, []).append((f'{distance:,}', abs(mean)))
  said = []
  for kind, members in by_kind.items():
    distances, sizes = zip(*members)
    costs = 'no clear difference'
    if kind:
      low, high = f'{min(sizes):.3f}', f'{max(sizes):.3f}'
      by = low if low == high else f'{low} to {high}'
      costs = f'it costs {by} bits per byte {kind}'
    said.append(f'{costs} after {_list(distances)} other bytes')
  return ', '.join(said)


def with_error(value: Mapping[str, float]) -> str:
  """Returns a mean and its standard error."""
  # Adding zero turns -0.0 into 0.0.
  return f'{round(value["mean"], 3) + 0.0:+.3f} ± {value["error"]:.3f}'


def printable(text: str) -> str:
  """Returns a text without characters that would command a terminal."""
  keep = lambda c: c.isprintable() or c in '\n\t'
  return ''.join(c if keep(c) else '\ufffd' for c in text)


def shorten(number: float) -> str:
  """Returns a number with a letter for its thousands: 1500000 -> 1.5 M."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(number) >= size:
      return f'{number / size:.3g} {letter}'
  return f'{number:.3g}'


def duration(seconds: float) -> str:
  """Returns seconds as a person says them."""
  if seconds < 100:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  if minutes < 100:
    return f'{minutes} min'
  return f'{minutes // 60} h {minutes % 60} min'


def _list(words: Sequence[str]) -> str:
  if len(words) == 1:
    return words[0]
  return f'{", ".join(words[:-1])} and {words[-1]}'


def _wrap(text: str) -> str:
  return textwrap.fill(text, 80)


def _table(rows: Sequence[Sequence[str]]) -> str:
  """Aligns columns: the first to the left, numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for row in rows:
    first, *others = (
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths))
    )
    lines.append('  '.join(['  ' + first, *others]).rstrip())
  return '\n'.join(lines)
