"""Why Hope recalls what it recalls: one field at a time, on MQAR.

  python -m hope_jax.main study --config=experiments/mqar_why.py

The rows, steps and optimizer of experiments/mqar.py, on seeds of its own; each
row says every field in which it differs from the others. 48,000 rows, each read
once. Results: experiments/mqar/WHY.md.
"""

import ml_collections

# The layer as the paper prints it. Every row says all of these fields, whatever
# the defaults are.
LITERAL = {
    'memory': 'matrix',
    'read_residual': 'full',
    'target': 'bounded',
    'values': 'unit',
    'read': 'causal',
    'gate_input': 'key',
    'input_projection': 'shared',
    'conv_init': 'recall',
    'projection_rank': 0,
    'momentum': True,
}
# What is taken up one after the other, a field a step.
STEPS = (
    ('a learned residual', {'read_residual': 'learned'}),
    ('a projection a stream', {'input_projection': 'equal'}),
    ('given values', {'target': 'value'}),
    ('gates see the layer', {'gate_input': 'layer'}),
    ('read after the write', {'read': 'after'}),
    ('rank 2', {'projection_rank': 2}),
    ('no momentum', {'momentum': False}),
)


def _hope(dim, **titans):
  return {'architecture': 'hope', 'dim': dim, 'titans': LITERAL | titans}


def _ladder():
  """Rows that take up one step after the other, at one width."""
  taken = {}
  yield {'name': 'Hope 24, literal', 'model': _hope(24)}
  for name, fields in STEPS:
    taken |= fields
    yield {'name': f'+ {name}', 'model': _hope(24, **taken)}


TAKEN = {k: v for _, fields in STEPS for k, v in fields.items()}

ROWS = (
    *(
        {'name': f'DeltaNet {dim}',
         'model': {'architecture': 'deltanet', 'dim': dim}}
        for dim in (24, 32, 64)
    ),
    *_ladder(),
    {'name': 'Hope 24, no residual',
     'model': _hope(24, **TAKEN | {'read_residual': 'none'})},
    {'name': 'Hope 24, values of a length',
     'model': _hope(24, **TAKEN | {'values': 'length'})},
    {'name': 'Hope 24, one projection',
     'model': _hope(24, **TAKEN | {'input_projection': 'shared'})},
    {'name': 'Hope 24, streams',
     'model': _hope(24, **TAKEN | {'input_projection': 'streams'})},
    {'name': 'Hope 24, identity',
     'model': _hope(24, **TAKEN | {'conv_init': 'identity'})},
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
