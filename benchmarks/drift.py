"""Do a model's embeddings drift together once there is no more to learn?

    python benchmarks/drift.py
    python benchmarks/drift.py --row 'DeltaNet 64' --setting 'b2 0.999'

A cell of experiments/mqar.py, 4 pairs, with one field of the optimizer changed
at a time. Every 250 steps: the loss, the share of right answers, and of the
embeddings of all 8,192 tokens the median cosine to the nearest other one, the
length of their mean direction (1: all point the same way) and the final norm's
scale. experiments/mqar/WHY.md reads the figures; they are written to
benchmarks/results/drift.json, a run under its row, setting and seed.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
from train_step import commit, machine

from hope_jax.evals import labelled
from hope_jax.studies import grid, training
from hope_jax.studies.task import Cell
from hope_jax.tasks import mqar
from hope_jax.tasks.labelling import at_positions

RESULTS = pathlib.Path(__file__).parent / 'results' / 'drift.json'
VOCAB, LENGTH, PAIRS = 8192, 64, 4
SETTINGS = {
    'as it is': {},
    'eps 1e-6': {'eps': 1e-6},
    'no weight decay': {'weight_decay': 0.0},
    'b2 0.999': {'b2': 0.999},
}


def likeness(embedding: np.ndarray) -> dict[str, float]:
  """How much alike vectors [V, D] are."""
  units = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
  cosines = units @ units.T
  np.fill_diagonal(cosines, -1)
  return {
      'nearest': float(np.median(cosines.max(axis=1))),
      'mean': float(np.linalg.norm(units.mean(axis=0))),
  }


def measure(row: str, setting: str, seed: int, steps: int) -> dict[str, Any]:
  """Trains one cell; what is measured on the way, by step."""
  study = grid.load('mqar', [
      ('base.train.steps', str(steps)), ('base.train.eval_every', '250'),
      *((f'base.optimizer.{k}', str(v)) for k, v in SETTINGS[setting].items()),
  ])
  config = grid.config_of(study, Cell(row, str(PAIRS), seed))
  rows = lambda seed, count: mqar.generate(
      seed, count, length=LENGTH, pairs=PAIRS, vocab=VOCAB
  )
  test, found = at_positions(rows(seed + 10**6, 512)), []

  def score(model, params):
    scores = labelled.evaluate(model, params, test, config.data.batch_size)
    found.append({
        'right': scores['positions'],
        **likeness(np.asarray(params['embedding'])),
        'scale': float(1 + np.mean(params['norm']['scale'])),
    })
    return {'right': scores['positions']}

  trained = training.on_labels(
      config, at_positions(rows(seed, 100_000)), VOCAB, score=score
  )
  assert trained is not None
  return {'loss': trained.facts['loss'], 'every 250 steps': found}


def main() -> None:
  """Measures the rows, settings and seeds that the command line names."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--row', nargs='+', default=['Hope 60', 'DeltaNet 64'])
  parser.add_argument('--setting', nargs='+', default=list(SETTINGS))
  parser.add_argument('--seed', type=int, nargs='+', default=[32])
  parser.add_argument('--steps', type=int, default=3000)
  options = parser.parse_args()
  runs = {}
  if RESULTS.exists():
    runs = json.loads(RESULTS.read_text())['runs']
  for row in options.row:
    for setting in options.setting:
      for seed in options.seed:
        name = f'{row}, {setting}, seed {seed}'
        runs[name] = measure(row, setting, seed, options.steps)
        last = runs[name]['every 250 steps'][-1]
        print(f'{name}: loss {runs[name]["loss"]:.3f},', last)
        found = {'machine': machine(), 'commit': commit(), 'runs': runs}
        RESULTS.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
