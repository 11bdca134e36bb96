"""MQAR: how many pairs a state of some size recalls.

  python -m hope_jax.main study --config=experiments/mqar.py
  python -m hope_jax.main study --config=experiments/mqar.py:tiny

Base difficulty, rows of 64 tokens out of 8,192 (published: up to 512), with up
to 16 pairs, and for a CPU: 3,000 steps of 16 rows (published: 64 epochs of
100,000). Rows are widths, so states; every result has its bytes of state, and a
figure compares architectures by them. Results: experiments/mqar/README.md.
"""

import ml_collections

# Widths whose states have 6 to 22 KB; those of linear attention 64, DeltaNet 64
# and Hope 60 are equal within 3 %. A memory of Titans comes with a frozen copy
# and momentum, one of Hope with those that make its keys, values and gates.
WIDTHS = {
    'Linear attention': ('linear_attention', (32, 64)),
    'DeltaNet': ('deltanet', (32, 64)),
    'Hope': ('hope', (60,)),
}
ROWS = (
    # Its streams are of one projection, as Hope's were when it ran.
    {'name': 'Titans 32',
     'model': {
         'architecture': 'titans', 'dim': 32,
         'titans': {'input_projection': 'shared'},
     }},
    {'name': 'Transformer 64', 'model': {'architecture': 'transformer'}},
    *(
        {'name': f'{name} {dim}', 'model': {'architecture': kind, 'dim': dim}}
        for name, (kind, dims) in WIDTHS.items()
        for dim in dims
    ),
    # With a frozen copy of the main memory: the same bytes in less width.
    {'name': 'Hope 44 (bounded targets)',
     'model': {
         'architecture': 'hope', 'dim': 44, 'titans': {'target': 'bounded'},
     }},
    {'name': 'Hope 60 (one projection)',
     'model': {
         'architecture': 'hope', 'dim': 60,
         'titans': {'input_projection': 'shared'},
     }},
    {'name': 'Hope 60 (no residual, values of a length)',
     'model': {
         'architecture': 'hope', 'dim': 60,
         'titans': {
             'input_projection': 'shared', 'read_residual': 'none',
             'values': 'length',
         },
     }},
    # Adam's second moment as published: with 0.95 (optimizer.b2) the embeddings
    # of those that learn soonest drift together once there is no more to learn.
    *(
        {'name': f'{name}, b2 0.999', 'optimizer': {'b2': 0.999},
         'model': {'architecture': kind, 'dim': dim}}
        for name, kind, dim in (
            ('DeltaNet 64', 'deltanet', 64), ('Hope 60', 'hope', 60),
        )
    ),
)


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'mqar',
      'results': 'runs/mqar_tiny' if tiny else 'experiments/mqar/results',
      'columns': ('4',) if tiny else ('4', '8', '16'),
      'counts': {'train': 8, 'test': 4} if tiny else {},
      'lengths': {'length': 32, 'vocab': 64} if tiny else {'length': 64},
      'seeds': (0,) if tiny else (0, 1, 2, 21, 22, 23, 24, 25),
      'rows': ROWS,
      'base': {
          'model': {
              'dim': 64,
              'layers': 1 if tiny else 2,
              'heads': 2,
              'remat': 'none',
              'unroll': 2,
              'tie_embeddings': True,
              'titans': {'memory': 'matrix'},
              'continuum': {'periods': (1,)},
          },
          'data': {'batch_size': 4 if tiny else 16, 'sequence_length': 128},
          'optimizer': {
              'learning_rate': 1e-2,
              'warmup_steps': 1 if tiny else 100,
              'weight_decay': 0.1,
          },
          'train': {
              'steps': 2 if tiny else 3000,
              'log_every': 1 if tiny else 100,
          },
      },
  })
