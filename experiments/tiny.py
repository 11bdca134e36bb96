"""A very small Hope on the source text of Python's standard library, for tests.

It shows that everything works, not that anything is learned:

  python -m hope_jax.main train --config=experiments/tiny.py

Twenty steps of 4 x 64 bytes: about half a minute on two cores, most of it
compilation.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      'model': {
          'dim': 32,
          'layers': 2,
          'heads': 2,
          'titans': {'expansion': 2, 'chunk': 8, 'projection_chunk': 8},
          'continuum': {'periods': (1, 2, 4)},
      },
      'data': {'sequence_length': 64, 'batch_size': 4, 'align': 8},
      'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 5},
      'train': {
          'steps': 20,
          'log_every': 5,
          'eval_every': 10,
          'eval_batches': 2,
          'checkpoint_every': 10,
      },
  })
