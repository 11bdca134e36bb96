"""One update of each optimizer on the same parameters, in one run.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --trees lm --only delta sgd

Times `update` and `apply_updates` of hope_jax.optim beside those of optax's
momentum SGD, AdamW and Muon, on the float32 parameters of a language model, 40
million of them, with a leaf for each layer ('lm') and stacked [layers, in, out]
('stacked'). The optimizers take turns, one step each, so that whatever the
machine does meets all of them alike; a mean over whole periods counts the steps
on which M3 has more to do. README.md says what the columns mean.

Needs hope_jax installed, 8 GB of memory, and a machine that does nothing else
for about five minutes.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from train_step import commit, machine

from hope_jax import optim

RESULTS = pathlib.Path(__file__).parent / 'results' / 'optimizers.json'
DIM, HIDDEN, LAYERS, VOCAB = 512, 2048, 8, 6144
PERIOD = 10  # of M3, and so the steps over which all are averaged
SLOW = 1.0  # seconds; such a step is measured for one period only
RATE = 1e-3
# What a row's time is divided by, where there is a goal for it.
GOALS = {
    'optim.m3': ('optax.contrib.muon', 1.15),
    'optim.delta_momentum': ('optax.sgd, momentum', 1.5),
}


def parameters(tree: str) -> dict[str, Any]:
  """Returns the parameters of a language model, or their gradients.

  Args:
    tree: 'lm', layers one by one, or 'stacked', under `layers`.
  """
  rng = iter(jax.random.split(jax.random.key(0), 100))
  draw = lambda *shape: 0.02 * jax.random.normal(next(rng), shape)
  layer = {name: (DIM, DIM) for name in ('q', 'k', 'v', 'out')}
  layer |= {name: (DIM, HIDDEN) for name in ('gate', 'up')}
  layer |= {'down': (HIDDEN, DIM), 'norm': (DIM,)}
  tables = {'embedding': draw(VOCAB, DIM), 'head': draw(DIM, VOCAB)}
  if tree == 'stacked':
    return tables | {
        'layers': {name: draw(LAYERS, *shape) for name, shape in layer.items()}
    }
  return tables | {
      f'layer_{i}': {name: draw(*shape) for name, shape in layer.items()}
      for i in range(LAYERS)
  }


def optax_muon() -> optax.GradientTransformation:
  """Returns optax's Muon on the matrices that ours takes, stacked or not."""
  spec = optax.contrib.MuonDimensionNumbers(-2, -1)
  return optax.contrib.muon(
      RATE,
      muon_weight_dimension_numbers=lambda params: jax.tree.map(
          lambda label: spec if label == 'matrix' else None,
          optim.matrix_labels(params),
      ),
  )


OPTIMIZERS = {
    'optax.sgd, momentum': lambda: optax.sgd(RATE, momentum=0.9),
    'optim.delta_momentum': lambda: optim.delta_momentum(RATE),
    'optim.feature_momentum': lambda: optim.feature_momentum(RATE),
    'optim.nonlinear_momentum': lambda: optim.nonlinear_momentum(RATE),
    'optim.multi_scale_momentum': lambda: optim.multi_scale_momentum(
        RATE, periods=(1, PERIOD), decays=(0.9, 0.9), weights=(1.0, 0.5)
    ),
    'optax.adamw': lambda: optax.adamw(RATE),
    'optim.preconditioned_momentum': lambda: optim.preconditioned_momentum(
        RATE
    ),
    'optim.deep_momentum': lambda: optim.deep_momentum(RATE),
    'optax.contrib.muon': optax_muon,
    'optim.muon': lambda: optim.muon(RATE),
    'optim.m3': lambda: optim.m3(RATE, period=PERIOD),
}


class Row:
  """An optimizer at work: its compiled step, its state, and its times."""

  def __init__(self, name: str, params: Any, grads: Any):
    tx = OPTIMIZERS[name]()
    self._params = jax.tree.map(jnp.copy, params)
    self._state = jax.jit(tx.init)(params)
    self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self._state))

    def step(params, state, grads):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    self._step = jax.jit(step, donate_argnums=(0, 1)).lower(
        self._params, self._state, grads
    ).compile()
    self.temporary_bytes = self._step.memory_analysis().temp_size_in_bytes
    self.times = []

  def step(self, grads: Any) -> None:
    """Makes a step and notes its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    self._params, self._state = self._step(self._params, self._state, grads)
    jax.block_until_ready((self._params, self._state))
    self.times.append(
        (time.perf_counter() - wall, time.process_time() - cpu)
    )


def measure(tree: str, names: list[str], periods: int) -> dict[str, Any]:
  """Returns seconds and bytes of each optimizer on one tree."""
  params = parameters(tree)
  grads = jax.tree.map(lambda p: 0.01 * p, params)
  rows = {name: Row(name, params, grads) for name in names}
  for row in rows.values():
    row.step(grads)  # warms up
  slow = {name for name, row in rows.items() if row.times.pop()[0] > SLOW}
  for i in range(periods * PERIOD):
    for name, row in rows.items():
      if i < PERIOD or name not in slow:
        row.step(grads)
    if sys.stderr.isatty():
      print(f'\r{tree}: {i + 1} steps', end='', file=sys.stderr, flush=True)
  result = {}
  for name, row in rows.items():
    # Each place in the period counts with its median over the periods, so that
    # a hiccup of the machine does not.
    wall, cpu = (
        statistics.mean(
            statistics.median(t[kind] for t in row.times[place::PERIOD])
            for place in range(PERIOD)
        )
        for kind in (0, 1)
    )
    result[name] = {
        'seconds': wall,
        'cpu_seconds': cpu,
        'steps': len(row.times),
        'state_bytes': row.state_bytes,
        'temporary_bytes': row.temporary_bytes,
    }
  return {
      'parameters': sum(x.size for x in jax.tree.leaves(params)),
      'parameter_bytes': sum(x.nbytes for x in jax.tree.leaves(params)),
      'optimizers': result,
  }


def table(report: dict[str, Any]) -> str:
  """Formats the results for a terminal, a row an optimizer."""
  lines = []
  for tree, found in report.items():
    rows = found['optimizers']
    unit = found['parameter_bytes']
    head = f'{tree}: {found["parameters"] / 1e6:.1f} M parameters'
    lines.append(f'{head:<34}      ms CPU-ms  state temporary  CPU against')
    for name, row in rows.items():
      other, goal = GOALS.get(name, (None, None))
      against = ''
      if other in rows:
        ratio = row['cpu_seconds'] / rows[other]['cpu_seconds']
        against = f'{ratio:.2f} x {other} (goal {goal})'
      lines.append(
          f'  {name:<32}{1e3 * row["seconds"]:>8.0f}'
          f'{1e3 * row["cpu_seconds"]:>7.0f}'
          f'{row["state_bytes"] / unit:>6.2f}x'
          f'{row["temporary_bytes"] / unit:>9.2f}x  {against}'.rstrip()
      )
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      '--trees', nargs='+', default=['lm', 'stacked'],
      choices=['lm', 'stacked'], help='default: both',
  )
  parser.add_argument(
      '--only', nargs='+', metavar='PART', default=[],
      help='measure the optimizers whose name contains one of these: '
      + '; '.join(OPTIMIZERS),
  )
  parser.add_argument(
      '--periods', type=int, default=5,
      help=f'measure this many times {PERIOD} steps, or once where a step takes'
      f' more than {SLOW:.0f} s (default: 5)',
  )
  parser.add_argument(
      '--output', type=pathlib.Path,
      help='JSON file, of which the trees measured are replaced (default,'
      f' without --only: {RESULTS})',
  )
  flags = parser.parse_args()
  names = [
      name for name in OPTIMIZERS
      if not flags.only or any(part in name for part in flags.only)
  ]
  if not names:
    parser.error(f'--only matches none of: {"; ".join(OPTIMIZERS)}')
  report = {}
  for tree in flags.trees:
    report[tree] = {
        'date': datetime.date.today().isoformat(),
        'commit': commit(),
        'machine': machine(),
        'versions': {
            name: importlib.metadata.version(name) for name in ('jax', 'optax')
        } | {'device': jax.devices()[0].device_kind},
    } | measure(tree, names, flags.periods)
  print(table(report))
  output = flags.output or (None if flags.only else RESULTS)
  if output:
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(output.read_text()) if output.exists() else {}
    output.write_text(json.dumps(kept | report, indent=2) + '\n')
    print(f'written to {output}')


if __name__ == '__main__':
  main()
