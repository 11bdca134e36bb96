r"""Optimizers side by side: one task, as many steps, one search for the rate.

  python -m hope_jax.evals.optimizers \
      --config=experiments/optimizers/digits.py

Each optimizer has a number of trials, with the seed 0, to find its learning
rate, and then a run at the best for each other seed. The search starts at a
usual rate, walks in factors of three towards the lower held-out loss, and then
looks half a factor to either side. Every run is a JSON file of its own in the
work folder; the same command again goes on where it stopped. At the end all are
joined into one.

The tasks: the toy landscape of NL Eq. 53, a ViT on images (§9.7), a language
model on bytes. There is one learning rate for all parameters, for which the
updates of Muon, AdaMuon and M3 have AdamW's root mean square of 0.2; only DGD,
whose steps are gradients, leaves AdamW's part at a rate of its own. Gradients
are clipped by their global norm. There is no weight decay.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import datetime
import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from hope_jax import config as config_lib
from hope_jax import optim, sharding
from hope_jax.config import ConfigError, MeshConfig, StudyConfig, experiment
from hope_jax.evals import machine
from hope_jax.evals.optimizer_problems import Problem, problem_of

RMS = 0.2  # of an update of AdamW, which Muon and M3 are brought to
CONVERGED = 0.01  # what counts as the bottom of the landscape
_POINTS = 50  # of a learning curve that is kept


class Rule(NamedTuple):
  """An optimizer to compare."""

  make: Callable[[], optax.GradientTransformation]  # with a learning rate of 1
  rate: float  # where its search starts
  # The rate of leaves that are no matrices, where it is not the searched one.
  other_rate: float | None = None
  dot_general: Callable | None = None  # of the model's layers


def _adamuon() -> optax.GradientTransformation:
  """Muon's direction divided by the root of its own second moment."""

  def match(updates, _):
    return jax.tree.map(
        lambda u: RMS * u / (jnp.sqrt(jnp.mean(u * u)) + 1e-30), updates
    )

  matrices = optax.chain(
      optim.scale_by_muon(),
      optax.scale_by_adam(b1=0.0, b2=0.95),
      optax.stateless(match),
      optax.scale(-1.0),
  )
  return optax.partition(
      {'matrix': matrices, 'other': _adamw()}, optim.matrix_labels
  )


def _adamw() -> optax.GradientTransformation:
  return optax.adamw(1.0, weight_decay=0.0)


RULES = {
    'adamw': Rule(_adamw, 3e-3),
    'muon': Rule(lambda: optim.muon(1.0, consistent_rms=RMS), 3e-3),
    'adamuon': Rule(_adamuon, 3e-3),
    'm3': Rule(lambda: optim.m3(1.0, rms=RMS), 3e-3),
    'dgd': Rule(
        lambda: optim.dgd(1.0), 3e-2, 3e-3, optim.delta_dot_general()
    ),
    'momentum': Rule(lambda: optax.sgd(1.0, momentum=0.9), 3e-2),
    'delta_momentum': Rule(lambda: optim.delta_momentum(1.0), 3e-2),
    'deep_momentum': Rule(lambda: optim.deep_momentum(1.0), 1e-1),
}


class Trainer:
  """Trains a problem with one rule; compiled once for all rates and seeds."""

  def __init__(self, problem: Problem, rule: Rule, config: StudyConfig):
    self._problem, self._rule, self._config = problem, rule, config
    self._tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm), rule.make()
    )
    self._step = jax.jit(self._make_step, donate_argnums=(0, 1))

  def _make_step(self, params, state, batch, rate, share):
    loss, grads = jax.value_and_grad(self._problem.loss)(
        params, batch, self._rule.dot_general
    )
    updates, state = self._tx.update(grads, state, params)
    other = self._rule.other_rate
    rates = jax.tree.map(
        lambda label: rate if other is None or label == 'matrix' else other,
        optim.matrix_labels(params),
    )
    updates = jax.tree.map(lambda u, r: share * r * u, updates, rates)
    return optax.apply_updates(params, updates), state, loss

  def run(self, rate: float, seed: int) -> dict[str, Any]:
    """Trains once; a loss that is no number ends the run."""
    problem, steps = self._problem, self._config.steps
    warmup = round(self._config.warmup * steps)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, warmup, steps, end_value=0.1
    )
    params = problem.init(seed)
    state = jax.jit(self._tx.init)(params)
    losses, trace, wall, cpu = [], [], [], []
    for i, batch in enumerate(problem.batches(seed)):
      if problem.trace:
        trace.append(problem.trace(params))
      clock = time.perf_counter(), time.process_time()
      params, state, loss = self._step(
          params, state, batch, rate, float(schedule(i + 1))
      )
      losses.append(float(loss))
      wall.append(time.perf_counter() - clock[0])
      cpu.append(time.process_time() - clock[1])
      if not math.isfinite(losses[-1]):
        break
    result = {
        'learning_rate': rate,
        'seed': seed,
        'steps': len(losses),
        'train_loss': _finite(np.mean(losses[-max(steps // 10, 1) :])),
        'curve': _curve(losses),
        # Medians: the first step compiles.
        'milliseconds': 1e3 * float(np.median(wall)),
        'cpu_milliseconds': 1e3 * float(np.median(cpu)),
    }
    found = problem.evaluate(params) if math.isfinite(losses[-1]) else {}
    result['heldout'] = {name: _finite(x) for name, x in found.items()}
    if problem.trace:
      above = [i for i, loss in enumerate(losses) if not loss < CONVERGED]
      settled = above[-1] + 1 if above else 0
      result['settled'] = settled if settled < steps else None
      result['trace'] = [[round(x, 4) for x in point] for point in trace]
    return result


def _finite(x: Any) -> float | None:
  return float(x) if math.isfinite(x) else None


def _curve(losses: list[float]) -> list[list[float | None]]:
  """[step, mean loss since the last point], about `_POINTS` of them."""
  size = max(len(losses) // _POINTS, 1)
  return [
      [i + size, _finite(np.mean(losses[i : i + size]))]
      for i in range(0, len(losses) - size + 1, size)
  ]


def heldout_loss(run: Mapping[str, Any]) -> float:
  """The held-out loss of a run; infinite where it came to none."""
  loss = run['heldout'].get('loss')
  return math.inf if loss is None else loss


def search(
    measure: Callable[[float], float], first: float, trials: int
) -> dict[float, float]:
  """Looks for the rate of the lowest loss, in factors of 3, then of sqrt(3).

  Args:
    measure: rate -> loss.
    first: rate to start from.
    trials: calls of `measure`, at most.

  Returns:
    Rate -> loss of all that were tried.
  """
  tried = {}  # k -> loss at first * 3 ** (k / 2)
  rate = lambda k: float(f'{first * 3 ** (k / 2):.3g}')
  while len(tried) < trials:
    # Down first: too high a rate diverges and says little.
    best = min(tried, key=lambda k: (tried[k], k), default=0)
    around = [best, best - 2, best + 2, best - 1, best + 1]
    fresh = [k for k in around if k not in tried]
    if not fresh:
      break
    tried[fresh[0]] = measure(rate(fresh[0]))
  return {rate(k): loss for k, loss in tried.items()}


def study(config: StudyConfig, folder: pathlib.Path) -> dict[str, Any]:
  """Makes all runs that are not there yet; returns the results of all.

  Args:
    config: what to compare, and on what.
    folder: where each run's file is, or will be.

  Raises:
    ConfigError: an unknown optimizer, or the folder has another study's runs.
  """
  for name in config.optimizers:
    if name not in RULES:
      raise ConfigError(
          f'StudyConfig.optimizers: {name!r} is none of {", ".join(RULES)}'
      )
  _claim(folder, config)
  problem = problem_of(config)
  results = {}
  total = len(config.optimizers) * (config.trials + len(config.seeds))
  with tqdm.tqdm(total=total, unit='run', disable=None) as bar:
    for name in config.optimizers:
      rule = RULES[name]
      trainer = Trainer(problem, rule, config)

      def run(rate, seed, name=name, trainer=trainer):
        bar.set_postfix_str(f'{name}, rate {rate:g}, seed {seed}')
        path = folder / f'{name}-{rate:g}-{seed}.json'
        if not path.exists():
          _write(path, trainer.run(rate, seed))
        bar.update()
        return json.loads(path.read_text())

      tried = search(
          lambda rate, run=run: heldout_loss(run(rate, 0)),
          rule.rate,
          config.trials,
      )
      best = min(tried, key=tried.get)
      runs = [run(best, seed) for seed in config.seeds]
      for later in runs[1:]:
        later.pop('trace', None)  # one path is drawn
      results[name] = {
          'learning_rate': best,
          'trials': {f'{r:g}': _finite(loss) for r, loss in tried.items()},
          'runs': runs,
      }
  params = jax.eval_shape(lambda: problem.init(0))
  return {
      'config': config_lib.to_dict(config),
      'parameters': sum(x.size for x in jax.tree.leaves(params)),
      'machine': machine.describe()
      | {'date': datetime.date.today().isoformat()},
      'optimizers': results,
  }


def _claim(folder: pathlib.Path, config: StudyConfig) -> None:
  """Writes the configuration to the folder, or checks the one there."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'config.json'
  mine = json.loads(json.dumps(config_lib.to_dict(config)))
  # More seeds, trials or optimizers only add runs to those there.
  for name in ('optimizers', 'seeds', 'trials'):
    mine.pop(name)
  if not path.exists():
    _write(path, mine)
  elif json.loads(path.read_text()) != mine:
    raise ConfigError(
        f'{folder} has runs of another configuration; give another --workdir'
    )


def _write(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all: an interrupted run leaves no half file."""
  new = path.with_suffix('.tmp')
  text = json.dumps(value, indent=1)
  # Lists of numbers on one line each.
  text = re.sub(
      r'\[([^][{}]*)\]', lambda m: f'[{" ".join(m[1].split())}]', text
  )
  new.write_text(text + '\n')
  os.replace(new, path)


def load(
    path: str, overrides: Sequence[tuple[str, str]] = ()
) -> StudyConfig:
  """Builds a study from an experiment file.

  Args:
    path: FILE, or FILE:ARGUMENT.
    overrides: dotted field names and the texts of their values.

  Raises:
    ConfigError: something in them is wrong.
  """
  values = experiment.load(path)
  experiment.override(values, overrides, StudyConfig)
  return config_lib.from_dict(values, StudyConfig)


def main(args: list[str]) -> int:
  """Runs a study and writes its results."""
  parser = argparse.ArgumentParser(
      prog='python -m hope_jax.evals.optimizers', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      '--config', required=True, metavar='FILE[:FORM]',
      help='experiment file, such as experiments/optimizers/digits.py; the form'
      ' tiny is for tests. Fields of StudyConfig follow: --config.steps=100',
  )
  parser.add_argument(
      '--workdir', type=pathlib.Path,
      help='folder of the runs (default: runs/optimizers/NAME)',
  )
  parser.add_argument(
      '--output', type=pathlib.Path,
      help='file of the results (default: results.json in the folder of the'
      ' runs)',
  )
  try:
    rest, overrides = experiment.split(args)
    flags = parser.parse_args(rest)
    path, _, form = flags.config.partition(':')
    name = '_'.join(filter(None, (pathlib.Path(path).stem, form)))
    folder = flags.workdir or pathlib.Path('runs/optimizers') / name
    config = load(flags.config, overrides)
    with jax.set_mesh(sharding.make_mesh(MeshConfig())):
      results = study(config, folder)
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  output = flags.output or folder / 'results.json'
  _write(output, results)
  for rule, found in results['optimizers'].items():
    losses = [heldout_loss(run) for run in found['runs']]
    print(f'{rule:<16} rate {found["learning_rate"]:<8g} held-out loss'
          f' {np.median(losses):.4f}')
  print(f'written to {output}')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
