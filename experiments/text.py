"""Hope beside what it is compared with, at 1 M parameters on real text.

  python -m hope_jax.main study --config=experiments/text.py
  python -m hope_jax.main study --config=experiments/text.py:tiny

Bytes of Python's standard library, and of WikiText-2 (valid.txt and test.txt
in data/wikitext2, one to read and one held out). All rows have the same
parameters within 1 %, and read the same 2 MB once, in the same order. Results:
experiments/text/README.md.
"""

import ml_collections

# The width of the MLPs is what makes the parameters equal.
ROWS = (
    {'name': 'Transformer++',
     'model': {'architecture': 'transformer', 'mlp_expansion': 5.125}},
    {'name': 'Gated DeltaNet (published)',
     'model': {
         'architecture': 'gated_deltanet_published', 'mlp_expansion': 4.0,
     }},
    {'name': 'Titans',
     'model': {'architecture': 'titans', 'mlp_expansion': 4.5625}},
    {'name': 'Hope, one MLP',
     'model': {
         'architecture': 'hope', 'mlp_expansion': 5.0,
         'continuum': {'periods': (1,)},
     }},
    {'name': 'Hope',
     'model': {
         'architecture': 'hope', 'mlp_expansion': 5.125,
         'continuum': {'periods': (1, 2, 4)},
     }},
)


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  return ml_collections.ConfigDict({
      'task': 'language_modeling',
      'results': 'runs/text_tiny' if tiny else 'experiments/text/results',
      'columns': ('stdlib',) if tiny else ('stdlib', 'wikitext2'),
      'by_column': {} if tiny else {
          'wikitext2': {
              'data': {'source': 'files', 'path': 'data/wikitext2/*.txt'},
          },
      },
      'seeds': (0,) if tiny else (0, 1, 2),
      'rows': ROWS,
      'base': {
          'model': {
              'dim': 16 if tiny else 128,
              'layers': 1 if tiny else 4,
              'heads': 2,
              'remat': 'none',
              'titans': {'memory': 'matrix', 'grid': 'aligned'},
          },
          'data': {
              'sequence_length': 64 if tiny else 1024,
              'batch_size': 2,
              'align': 16,
          },
          'optimizer': {
              'learning_rate': 4e-3,
              'warmup_steps': 1 if tiny else 50,
              'weight_decay': 0.05,
          },
          'train': {
              'steps': 2 if tiny else 1000,
              'log_every': 1 if tiny else 50,
              'eval_every': 2 if tiny else 1000,
              'eval_batches': 1 if tiny else 64,
          },
      },
  })
