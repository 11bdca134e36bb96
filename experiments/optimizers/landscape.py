r"""The toy landscape of NL Eq. 53 (Fig. 4): two numbers, a winding valley.

  python -m hope_jax.main study \
      --config=experiments/optimizers/landscape.py

From (-3.5, 2), the paper's start, and nine starts near it. The constants of
the valley, which the paper does not give, are in studies/problems.py. A minute
on one core. What came of it: experiments/optimizers/README.md.
"""

import ml_collections


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'optimizers',
      'results': 'runs/optimizers_landscape_tiny'
      if tiny
      else 'experiments/optimizers/results',
      'section': 'landscape',
      'columns': ('landscape',),
      # DGD needs the inputs of a layer, which two numbers do not have.
      'rows': tuple(
          {'name': name}
          for name in (
              'adamw', 'muon', 'adamuon', 'm3', 'momentum', 'delta_momentum',
              'deep_momentum',
          )
      ),
      'trials': 2 if tiny else 16,
      'seeds': (1,) if tiny else tuple(range(1, 10)),
      'base': {
          # As good as no clipping.
          'optimizer': {'warmup_steps': 0, 'clip_norm': 1e9},
          'train': {'steps': 20 if tiny else 500},
      },
  })
