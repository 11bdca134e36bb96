"""Why Hope recalls what it recalls: one field at a time, on MQAR.

  python -m hope_jax.main study --config=experiments/mqar_why.py

The rows, steps and optimizer of experiments/mqar.py, on seeds of its own; each
row says every field in which it differs from the others. 48,000 rows, each read
once. Results: experiments/mqar/WHY.md.
"""

import ml_collections

ROWS = (
    {'name': 'DeltaNet 32', 'model': {'architecture': 'deltanet', 'dim': 32}},
    {'name': 'DeltaNet 64', 'model': {'architecture': 'deltanet', 'dim': 64}},
)


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      'task': 'mqar',
      'results': 'experiments/mqar/why',
      'page': 'WHY.md',
      'columns': ('8', '16'),
      'counts': {'train': 48_000},
      'lengths': {'length': 64},
      'seeds': (11, 12, 13, 14, 15),
      'rows': ROWS,
      'base': {
          'model': {
              'layers': 2,
              'heads': 2,
              'remat': 'none',
              'unroll': 2,
              'tie_embeddings': True,
              'titans': {'memory': 'matrix'},
              'continuum': {'periods': (1,)},
          },
          'data': {'batch_size': 16, 'sequence_length': 128},
          'optimizer': {
              'learning_rate': 1e-2,
              'warmup_steps': 100,
              'weight_decay': 0.1,
          },
          'train': {'steps': 3000, 'log_every': 100},
      },
  })
