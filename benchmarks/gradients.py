"""Which gradients are small at initialisation, and does Adam see them?

    python benchmarks/gradients.py
    python benchmarks/gradients.py --memory matrix --layer default

For a small Hope (2 layers of width 64, 2 x 128 bytes), each parameter's
gradient as a share of the head's: on random bytes, on text, and with one thing
changed at initialisation. Then the first steps of training on text with AdamW
as it is, with an epsilon that hides nothing, and without clipping: how far a
step moves an entry of each parameter, in learning rates (RMS over entries,
median over steps; 1 is what Adam gives a steady gradient).

docs/gradients.md reads the figures; they are written to
benchmarks/results/gradients.json.
"""

import argparse
import itertools
import json
import math
import pathlib
import statistics
from typing import Any

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_step import commit, machine

from hope_jax import data
from hope_jax.config import PRINTED, Config, from_dict
from hope_jax.models.factory import language_model
from hope_jax.optim import factory
from hope_jax.train import losses

RESULTS = pathlib.Path(__file__).parent / 'results' / 'gradients.json'
ROWS, LENGTH = 2, 128
RATE = 3e-3
# The printed form has a full memory for each gate, and momentum.
LAYERS = {'default': {}, 'printed': PRINTED}
# Fields of the optimizer.
SETTINGS = {
    'as it is': {},
    'eps 1e-15': {'eps': 1e-15},
    'no clipping': {'clip_norm': 1e9},
}


def config_of(memory: str, layer: str, **optimizer: float) -> Config:
  """The configuration of a run; without weight decay, which moves as well."""
  return from_dict({
      'model': {
          'dim': 64, 'layers': 2, 'heads': 4, 'remat': 'none',
          'titans': {'memory': memory} | LAYERS[layer],
          'continuum': {'periods': (1,)},
      },
      'data': {'sequence_length': LENGTH, 'batch_size': ROWS},
      'optimizer': {
          'learning_rate': RATE, 'warmup_steps': 0, 'final_learning_rate': 1,
          'weight_decay': 0, **optimizer,
      },
  })


def by_leaf(tree: Any) -> dict[str, jax.Array]:
  """Name of a parameter -> its array, the head and the mixers' alone."""
  found = {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {
      name.removeprefix('layers/mixer/'): leaf
      for name, leaf in found.items()
      if name == 'head' or 'mixer/' in name
  }


def rms(x: jax.Array) -> float:
  """Root of the mean square."""
  return float(jnp.sqrt(jnp.mean(x * x)))


def changed(params: Any, change: dict[str, Any]) -> Any:
  """Parameters; a function is applied where a name holds what it is under."""

  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for part, function in change.items():
      if part in name:
        x = function(x)
    return x

  return jax.tree_util.tree_map_with_path(leaf, params)


def at_initialisation(gradient, params, text, noise) -> dict[str, dict]:
  """Case -> parameter -> norm of its gradient over the head's."""
  logit = math.log(0.9 / 0.1)
  cases = {
      'random bytes': ({}, noise),
      'text': ({}, text),
      'text, retention 0.9 instead of 0.999': (
          {'bias_alpha': lambda x: jnp.full_like(x, logit)}, text
      ),
      'text, output layers of standard deviation 1': (
          {'_w_out': lambda x: 50 * x}, text
      ),
  }
  found = {}
  for name, (change, batch) in cases.items():
    grads = by_leaf(gradient(changed(params, change), batch))
    head = float(jnp.linalg.norm(grads['head']))
    found[name] = {
        leaf: float(jnp.linalg.norm(x)) / head for leaf, x in grads.items()
    }
  return found


def trained(gradient, params, config: Config, steps: int) -> dict[str, Any]:
  """The first steps of a run: what each parameter's updates were."""
  optimizer = factory.make_optimizer(config.optimizer, steps)
  update = jax.jit(optimizer.update)
  state, batches = optimizer.init(params), iter(data.train_batches(config.data))
  norms, gradients, updates = [], [], []
  for _ in range(steps):
    grads = gradient(params, next(batches))
    moves, state = update(grads, state, params)
    params = optax.apply_updates(params, moves)
    norms.append(float(optax.global_norm(grads)))
    gradients.append({name: rms(x) for name, x in by_leaf(grads).items()})
    updates.append({name: rms(x) / RATE for name, x in by_leaf(moves).items()})
  median = lambda rows: {
      name: statistics.median(row[name] for row in rows) for name in rows[0]
  }
  return {
      'norm': {
          'first': norms[0],
          'median': statistics.median(norms),
          'steps above 1': sum(norm > 1 for norm in norms),
      },
      'gradient': median(gradients),
      'update': median(updates),
  }


def measure(memory: str, layer: str, steps: int) -> dict[str, Any]:
  """All of one kind of memory, in one form of the layer."""
  config = config_of(memory, layer)
  model = language_model(config.model)
  loss_fn = losses.make_loss_fn(model)
  key = jax.random.key(0)

  @jax.jit
  def gradient(params, batch):
    mean = lambda p: loss_fn(p, batch, key)[0] / jnp.sum(batch['mask'])
    return jax.grad(mean)(params)

  text = next(iter(data.train_batches(config.data)))
  bytes_ = np.random.default_rng(0).integers(0, 256, (ROWS, LENGTH + 1))
  noise = text | {
      'tokens': bytes_[:, :-1].astype(np.int32),
      'targets': bytes_[:, 1:].astype(np.int32),
  }
  init = jax.jit(lambda: model.init(key, jnp.asarray(text['tokens']))['params'])
  params = meta.unbox(init())
  return {
      'initial': at_initialisation(gradient, params, text, noise),
      'training': {
          name: trained(
              gradient, params, config_of(memory, layer, **fields), steps
          )
          for name, fields in SETTINGS.items()
      },
  }


def show(found: dict[str, Any]) -> None:
  """Prints what was measured, a line for each parameter."""
  columns = list(found['initial'])
  print('share of the head:', *columns, sep=' | ')
  for leaf in found['initial'][columns[0]]:
    shares = (f'{found["initial"][name][leaf]:.1e}' for name in columns)
    print(leaf, *shares, sep=' | ')
  runs = found['training']
  print('RMS gradient, update in learning rates:', *runs, sep=' | ')
  for leaf, size in runs['as it is']['gradient'].items():
    moves = (f'{run["update"][leaf]:.3f}' for run in runs.values())
    print(leaf, f'{size:.1e}', *moves, sep=' | ')
  for name, run in runs.items():
    print(name, run['norm'])


def main() -> None:
  """Measures the memories and forms that the command line names."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--memory', nargs='+', default=['matrix', 'mlp'])
  parser.add_argument('--layer', nargs='+', default=list(LAYERS))
  parser.add_argument('--steps', type=int, default=100)
  args = parser.parse_args()
  result = {'machine': machine(), 'commit': commit(), 'steps': args.steps}
  for memory, layer in itertools.product(args.memory, args.layer):
    name = f'{memory}, {layer}'
    result[name] = measure(memory, layer, args.steps)
    print(f'{memory} memories, the {layer} layer')
    show(result[name])
  RESULTS.write_text(json.dumps(result, indent=1) + '\n')
  print(f'written: {RESULTS}')


if __name__ == '__main__':
  main()
