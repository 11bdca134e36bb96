"""MQAR: how many pairs a state of some size recalls.

  python -m hope_jax.evals.sweep --config=experiments/mqar.py
  python -m hope_jax.evals.sweep --config=experiments/mqar.py:tiny

Rows are widths, so states; every result has its bytes of state, and a figure
compares architectures at equal bytes. Results: experiments/mqar/README.md.
"""

import ml_collections

KINDS = {
    'Linear attention': 'linear_attention',
    'DeltaNet': 'deltanet',
    'Titans': 'titans',
    'Hope': 'hope',
}
ROWS = (
    {'name': 'Transformer 64', 'model': {'architecture': 'transformer'}},
    *(
        {'name': f'{name} {dim}', 'model': {'architecture': kind, 'dim': dim}}
        for name, kind in KINDS.items()
        for dim in (32, 64, 128)
    ),
)


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'mqar',
      'results': 'runs/mqar_tiny' if tiny else 'experiments/mqar/results',
      'columns': ('4',) if tiny else ('4', '8', '16', '32', '64'),
      'counts': {'train': 8, 'test': 4} if tiny else {'train': 20_000},
      'lengths': {'length': 32, 'vocab': 64} if tiny else {'length': 256},
      'seeds': (0,) if tiny else (0, 1, 2),
      'rows': ROWS,
      'base': {
          'model': {
              'dim': 64,
              'layers': 1 if tiny else 2,
              'heads': 2 if tiny else 2,
              'remat': 'none',
              'titans': {'memory': 'matrix'},
              'continuum': {'periods': (1,)},
          },
          'data': {'batch_size': 4 if tiny else 64, 'sequence_length': 128},
          'optimizer': {
              'learning_rate': 3e-3,
              'warmup_steps': 1 if tiny else 100,
              'weight_decay': 0.1,
          },
          'train': {
              'steps': 2 if tiny else 2000,
              'log_every': 1 if tiny else 100,
          },
      },
  })
