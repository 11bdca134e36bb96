"""Does Hope stay where it should? Long streams, and many steps at many seeds.

    python benchmarks/stability.py stream                      # initialised
    python benchmarks/stability.py stream --workdir=runs/quickstart  # trained
    python benchmarks/stability.py train                       # 4 seeds

`stream` feeds 100,000 bytes of held-out text in many calls, the state handed
over, and prints the largest norm of any memory as it goes. `train` trains a
small Hope with each kind of memory for 2,000 steps and counts loss spikes: a
median over 20 steps that lies more than 0.5 nats above the lowest such median
before it. Both write JSON into benchmarks/results/.
"""

import argparse
import json
import pathlib
import time

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from hope_jax import data
from hope_jax.config import from_dict
from hope_jax.models.factory import language_model
from hope_jax.train import checkpoint, loop

RESULTS = pathlib.Path(__file__).parent / 'results'
PER_CALL = 1000  # bytes
SPIKE = 0.5  # nats
WINDOW = 20  # steps


def state_norm(state) -> float:
  """Largest Frobenius norm of a memory matrix in a state."""
  memories = state['layers']['titans'].memories
  squares = [jnp.sum(x * x, (-2, -1)) for x in jax.tree.leaves(memories)]
  return float(max(jnp.sqrt(jnp.max(s)) for s in squares))


def stream(model, params, text: bytes, tokens: int) -> list[dict[str, float]]:
  """Reads `tokens` bytes and returns norm and loss after each tenth of them."""
  ids = np.frombuffer(text, np.uint8).astype(np.int32)
  ids = np.resize(ids, tokens + 1)  # a short text is read again

  @jax.jit
  def read(params, inputs, targets, state):
    logits, state = model.apply({'params': params}, inputs, state)
    log_p = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)
    return jnp.mean(nats), state

  _, state = model.apply({'params': params}, jnp.full((1, 1), 10))
  rows, losses = [], []
  for at in tqdm.tqdm(range(0, tokens, PER_CALL), unit='call'):
    part = ids[None, at : at + PER_CALL + 1]
    loss, state = read(params, part[:, :-1], part[:, 1:], state)
    losses.append(float(loss))
    if (at + PER_CALL) % (tokens // 10) == 0:
      rows.append({
          'tokens': at + PER_CALL,
          'state_norm': state_norm(state),
          'bits_per_byte': float(np.mean(losses) / np.log(2)),
      })
      losses = []
  return rows


def spikes(losses: np.ndarray) -> int:
  """Windows whose median lies above the lowest earlier one by SPIKE."""
  count = len(losses) // WINDOW
  medians = np.median(losses[: count * WINDOW].reshape(count, WINDOW), axis=1)
  lowest = np.minimum.accumulate(medians)
  return int(np.sum(medians[1:] > lowest[:-1] + SPIKE))


def small(memory: str, seed: int, steps: int) -> dict:
  """The configuration of the `train` part."""
  return {
      'model': {
          'dim': 32, 'layers': 2, 'heads': 2, 'remat': 'none',
          'titans': {'memory': memory, 'grid': 'aligned'},
      },
      'data': {'sequence_length': 64, 'batch_size': 4, 'seed': seed},
      'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 50},
      'train': {'steps': steps, 'seed': seed, 'log_every': 1},
  }


def main() -> None:
  """Runs the part that the command line names."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('part', choices=('stream', 'train'))
  parser.add_argument('--workdir', default='', help='a trained run to stream')
  parser.add_argument('--tokens', type=int, default=100_000)
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--seeds', type=int, default=4)
  parser.add_argument(
      '--memory', nargs='+', default=['matrix', 'mlp'], help='kinds of memory'
  )
  args = parser.parse_args()
  clock = time.monotonic()
  result = {'jax': jax.__version__, 'device': jax.devices()[0].device_kind}
  if args.part == 'stream':
    name = 'stream_trained' if args.workdir else 'stream_initial'
    if args.workdir:
      config = checkpoint.load_config(args.workdir)
      model = language_model(config.model)
      like = jax.eval_shape(
          lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), int))
      )
      params = checkpoint.Checkpoints(config).restore_params(
          meta.unbox(like)['params']
      )
      runs = {config.model.titans.memory: (config, model, params)}
    else:
      runs = {}
      for memory in args.memory:
        config = from_dict(small(memory, 0, 1))
        model = language_model(config.model)
        params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        runs[memory] = (config, model, meta.unbox(params)['params'])
    text = data.heldout_text(config.data)
    for memory, (_, model, params) in runs.items():
      rows = stream(model, params, text, args.tokens)
      result[memory] = rows
      for row in rows:
        print(memory, row)
  else:
    name = 'train_seeds'
    for memory in args.memory:
      result[memory] = []
      for seed in range(args.seeds):
        config = from_dict(small(memory, seed, args.steps))
        model = language_model(config.model)
        run = loop.train(model, data.train_batches(config.data), config)
        losses = np.array([r['loss'] for r in run.history])
        row = {
            'seed': seed,
            'steps': len(losses),
            'spikes': spikes(losses),
            'first_loss': float(losses[0]),
            'last_loss': float(np.mean(losses[-100:])),
            'largest_write': max(r['max_write/max'] for r in run.history),
            'largest_state_norm': max(
                r['state_norm/max'] for r in run.history
            ),
        }
        result[memory].append(row)
        print(memory, row, flush=True)
  result['seconds'] = round(time.monotonic() - clock)
  RESULTS.mkdir(exist_ok=True)
  path = RESULTS / f'{name}.json'
  path.write_text(json.dumps(result, indent=1) + '\n')
  print(f'written: {path}')


if __name__ == '__main__':
  main()
