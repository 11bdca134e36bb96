"""What each part of Hope is worth on real text (NL Table 6).

  python -m hope_jax.main study --config=experiments/ablation.py
  python -m hope_jax.main study --config=experiments/ablation.py:tiny

One flag a row, three seeds, the source text of Python's standard library as
bytes. Results: experiments/ablation/README.md. The paper's perplexities (1.3 B
parameters): Hope 12.24, without DGD 13.41, momentum 13.58, weight decay 13.71,
CMS 13.04, inner k 13.77, inner v 13.90, inner q 12.19.
"""

import ml_collections

# What Table 6 takes away. The paper's text has a static query, its table takes
# an adaptive one away: the first row is the text's Hope, the last adds the
# query.
PARTS = {
    'without DGD': {'titans': {'dgd': False}},
    'without retention': {'titans': {'retention': False}},
    'without CMS': {'continuum': {'periods': (1,)}},
    'without inner k': {'titans': {'adaptive_k': False}},
    'without inner v': {'titans': {'adaptive_v': False}},
    'with inner q': {'titans': {'adaptive_q': True}},
}
# The layer as the paper prints it, with targets that are bounded and momentum.
LITERAL = {
    'read_residual': 'full',
    'target': 'bounded',
    'values': 'unit',
    'read': 'causal',
    'gate_input': 'key',
    'input_projection': 'shared',
    'projection_rank': 0,
    'momentum': True,
}


def _literal(model):
  return model | {'titans': LITERAL | model.get('titans', {})}


ROWS = (
    {'name': 'Hope'},
    *({'name': name, 'model': model} for name, model in PARTS.items()),
    {'name': 'with momentum', 'model': {'titans': {'momentum': True}}},
    # Slow levels that move further when they move.
    {'name': 'with levels at the root of p',
     'optimizer': {'level_power': 0.5}},
    {'name': 'with levels at p times the rate',
     'optimizer': {'level_power': 1.0}},
    # Each field in which the default is not the paper's, and was chosen here.
    {'name': 'with bounded targets',
     'model': {'titans': {'target': 'bounded'}}},
    {'name': 'with one projection',
     'model': {'titans': {'input_projection': 'shared'}}},
    {'name': 'with a residual from 1',
     'model': {'titans': {'residual_init': 1.0}}},
    {'name': 'with a residual from 1/4',
     'model': {'titans': {'residual_init': 0.25}}},
    {'name': 'with a fixed residual',
     'model': {'titans': {'read_residual': 'full'}}},
    {'name': 'without a residual',
     'model': {'titans': {'read_residual': 'none'}}},
    {'name': 'without a residual, values of a length',
     'model': {'titans': {'read_residual': 'none', 'values': 'length'}}},
    {'name': 'with values of a length',
     'model': {'titans': {'values': 'length'}}},
    {'name': 'literal', 'model': _literal({})},
    *(
        {'name': f'literal, {name}', 'model': _literal(model)}
        for name, model in PARTS.items()
    ),
    {'name': 'literal, without momentum',
     'model': _literal({'titans': {'momentum': False}})},
)


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'language_modeling',
      'results': 'runs/ablation_tiny'
      if tiny
      else 'experiments/ablation/results',
      'columns': ('stdlib',),
      'seeds': (0,) if tiny else (0, 1, 2),
      'rows': ROWS,
      'base': {
          'model': {
              'dim': 16 if tiny else 64,
              'layers': 1 if tiny else 2,
              'heads': 2,
              'remat': 'none',
              'titans': {'memory': 'matrix', 'grid': 'aligned'},
              'continuum': {'periods': (1, 2, 4)},
          },
          'data': {
              'sequence_length': 64 if tiny else 512,
              'batch_size': 2 if tiny else 4,
              'align': 16,
          },
          'optimizer': {
              'learning_rate': 4e-3,
              'warmup_steps': 1 if tiny else 50,
              'weight_decay': 0.05,
          },
          'train': {
              'steps': 2 if tiny else 300,
              'log_every': 1 if tiny else 50,
              'eval_every': 2 if tiny else 300,
              'eval_batches': 1 if tiny else 32,
          },
      },
  })
