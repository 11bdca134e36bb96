"""Needles in haystacks of bytes, trained at 1K, tested to 64K (NL Table 1).

  python -m hope_jax.main study --config=experiments/needles.py
  python -m hope_jax.main study --config=experiments/needles.py:tiny

A form for a CPU: two blocks of width 64, two rows of 1,024 bytes a step. Rows
named '(32 rows)' have 32 of them: hours a cell on a CPU, so they want a GPU or
TPU, and run only where asked for: `--config.rows_run='Hope (32 rows)'`.
Accuracy by length and depth, as heat maps: experiments/needles/README.md.
"""

import ml_collections

# The layer as the paper prints it, with targets that are bounded and momentum:
# what ran before the defaults were what recalls (experiments/mqar/WHY.md).
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
ROWS = (
    {'name': 'Transformer', 'model': {'architecture': 'transformer'}},
    {'name': 'Hope-Attention', 'model': {'architecture': 'hope_attention'}},
    # Its streams are of one projection, as Hope's were when it ran.
    {'name': 'Titans',
     'model': {
         'architecture': 'titans', 'titans': {'input_projection': 'shared'},
     }},
    {'name': 'Hope', 'model': {'architecture': 'hope'}},
    {'name': 'Hope (literal)',
     'model': {'architecture': 'hope', 'titans': LITERAL}},
)
# The same with 16 times as many rows a step, for an accelerator.
LARGE_BATCH = tuple(
    row | {'name': f'{row["name"]} (32 rows)', 'data': {'batch_size': 32}}
    for row in ROWS
)


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'needles',
      'results': 'runs/needles_tiny' if tiny else 'experiments/needles/results',
      'columns': (
          's_niah_1', 's_niah_2', 's_niah_3', 'mk_niah', 'mq_niah', 'mv_niah',
      ),
      'counts': {'train': 4, 'test': 1}
      if tiny
      else {'train': 8000, 'test': 16},
      'lengths': {'train': 512, 'test': (512, 600), 'depths': (0.0, 1.0)}
      if tiny
      else {},
      'seeds': (0,) if tiny else (0, 1, 2),
      'rows': ROWS if tiny else ROWS + LARGE_BATCH,
      'rows_run': tuple(row['name'] for row in ROWS),
      'base': {
          'model': {
              'dim': 16 if tiny else 64,
              'layers': 1 if tiny else 2,
              'heads': 2,
              'remat': 'none',
              'titans': {'memory': 'matrix'},
              'continuum': {'periods': (1,)},
              'attention_window': 16_384,
          },
          'data': {'batch_size': 2, 'sequence_length': 128},
          'optimizer': {
              'learning_rate': 3e-3,
              'warmup_steps': 1 if tiny else 100,
              'weight_decay': 0.1,
          },
          'train': {
              'steps': 2 if tiny else 4000,
              'log_every': 1 if tiny else 100,
          },
      },
  })
