r"""A small ViT on scikit-learn's digits, trained by each optimizer.

  pip install 'hope_jax[images]'
  python -m hope_jax.main study \
      --config=experiments/optimizers/digits.py

1,437 pictures of 8 x 8 to train on, 360 held out. What came of it, and how long
it took: experiments/optimizers/README.md.
"""

import ml_collections

ROWS = ('adamw', 'muon', 'adamuon', 'm3', 'dgd', 'delta_momentum')
MORE = ('momentum', 'deep_momentum')  # only where rows_run says so


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'optimizers',
      'results': 'runs/optimizers_digits_tiny'
      if tiny
      else 'experiments/optimizers/results',
      'section': 'digits',
      'columns': ('digits',),
      'rows': tuple({'name': name} for name in ROWS + MORE),
      'rows_run': ROWS,
      'trials': 2 if tiny else 5,
      'seeds': (1,) if tiny else (1, 2, 3),
      'vit': {
          'patch': 4 if tiny else 2,
          'dim': 8 if tiny else 48,
          'layers': 1 if tiny else 3,
          'heads': 2 if tiny else 4,
          'hidden': 16 if tiny else 192,
      },
      'images': {'batch_size': 60},
      'base': {
          'optimizer': {'warmup_steps': 0 if tiny else 30, 'clip_norm': 1.0},
          'train': {'steps': 4 if tiny else 300, 'eval_batches': 16},
      },
  })
