r"""A byte language model on Python's standard library, by each optimizer.

  python -m hope_jax.main study \
      --config=experiments/optimizers/text.py

A Transformer++ of this package, 0.38 M parameters, stacked layers, 150 steps of
512 bytes. What came of it, and how long it took:
experiments/optimizers/README.md.
"""

import ml_collections

ROWS = ('adamw', 'muon', 'm3', 'adamuon', 'dgd', 'delta_momentum')
MORE = ('momentum', 'deep_momentum')  # only where rows_run says so


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'optimizers',
      'results': 'runs/optimizers_text_tiny'
      if tiny
      else 'experiments/optimizers/results',
      'section': 'text',
      'columns': ('text',),
      'rows': tuple({'name': name} for name in ROWS + MORE),
      'rows_run': ROWS,
      'trials': 2 if tiny else 6,
      'seeds': (1,) if tiny else (1, 2, 3),
      'base': {
          'model': {
              'architecture': 'transformer',
              'dim': 16 if tiny else 96,
              'layers': 1 if tiny else 3,
              'heads': 2 if tiny else 4,
              'attention_window': 32 if tiny else 128,
              'remat': 'none',
          },
          'data': {
              'sequence_length': 32 if tiny else 128,
              'batch_size': 2 if tiny else 4,
              'align': 1,
          },
          'optimizer': {'warmup_steps': 0 if tiny else 15, 'clip_norm': 1.0},
          'train': {
              'steps': 4 if tiny else 150,
              'eval_batches': 1 if tiny else 16,
          },
      },
  })
