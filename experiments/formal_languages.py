"""Formal languages: what each architecture can compute (NL Table 5).

  python -m hope_jax.main study --config=experiments/formal_languages.py
  python -m hope_jax.main study --config=experiments/formal_languages.py:tiny

Published files (github.com/IDSIA/fwp-formal-lang, or the generator that they
come from; see hope_jax/tasks/language_files.py), or your own language:

  ... --config.data_dir=data/parity       train_50.src, ... or train_src.txt
  ... --config.language=mine.py:function  see hope_jax/tasks/formal_languages.py

The paper has 100 / 100 for Hope on all six, and 0 on Bin1 of Parity, (aa)* and
(abab)* for the Transformer and the linear Transformer. What is reproduced so
far, and how, is in experiments/formal_languages/README.md.
"""

import ml_collections

LANGUAGES = (
    'parity', 'aa_star', 'abab_star', 'anbn', 'anbncn', 'shuffle2', 'dyck1',
    'reset_dyck1',
)


def _turning(**titans):
  """Hope that counts modulo two; the README says why these settings."""
  return {
      'architecture': 'hope',
      'continuum': {'periods': (1,)},
      'titans': {
          'memory': 'matrix',
          'momentum': False,
          'conv': False,
          'eigenvalues': 'signed',
          'retention': False,
          'adaptive_k': False,
          'adaptive_gates': False,
          'chunk': 1,
          'projection_chunk': 1,
          'read_residual': 'full',
          'target': 'bounded',
          'values': 'unit',
          'read': 'causal',
          'gate_input': 'key',
          'input_projection': 'shared',
          'projection_rank': 0,
      }
      | titans,
  }


def _whole_numbers():
  """Hope whose memories hold whole numbers: half of its heads count."""
  hope = _turning(
      arithmetic='integer', retention=True, retention_init=0.67,
      adaptive_v=False, target='value', read='after',
      # A product of random corners for each stream: were keys and values one,
      # what is added could not be taken away.
      input_projection='streams', plain_heads=4, plain_eta_init=0.75,
      eta_init=0.75,
  )
  return hope | {'heads': 8}


def _plain_heads(**titans):
  """Hope that counts without bound, too: half of its heads erase nothing.

  The others start with an eigenvalue of -1/2 instead of 0.
  """
  hope = _turning(
      plain_heads=4, read='after', target='value', eta_init=0.75, **titans
  )
  return hope | {'heads': 8}


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'tiny'):
    raise ValueError(f"the form is 'full' or 'tiny'; got {form!r}")
  tiny = form == 'tiny'
  rows = {
      'LSTM': {'architecture': 'lstm', 'dim': 16 if tiny else 64},
      'SRWM': {'architecture': 'srwm'},
      'Transformer': {'architecture': 'transformer'},
      'Linear Transformer': {'architecture': 'linear_attention'},
      'DeltaNet': {'architecture': 'deltanet'},
      # Half of its heads turn over, half add up without bound; and gates that
      # see the layer's input can clear them.
      'Hope': _plain_heads(
          adaptive_v=False, retention=True, retention_init=0.9999,
          gate_input='layer',
      ),
      'Hope (plain heads, values adapt)': _plain_heads(adaptive_v=True),
      'Hope (no plain heads)': _turning(),
      'Hope (chunk 16)': _turning(chunk=16, projection_chunk=16),
      'Hope (keys and rates adapt)': _turning(
          adaptive_k=True, adaptive_gates=True
      ),
      'Hope (eigenvalues >= 0)': _turning(eigenvalues='positive'),
      # Counts exactly, and forgets at once.
      'Hope (whole numbers)': _whole_numbers(),
  }
  # Weight decay keeps an LSTM's gates from closing, and a count leaks. The loss
  # is nothing before a count is exact: a usual eps (1e-8) would stop it there.
  others = {'LSTM': {'optimizer': {'weight_decay': 0.0, 'eps': 1e-15}}}
  # What is rounded jumps: smaller steps, none where hardly any loss is left,
  # and training ends before it jumps again.
  others['Hope (whole numbers)'] = {
      'optimizer': {'learning_rate': 5e-3, 'eps': 1e-6},
      'train': {} if tiny else {'eval_every': 250},
  }
  # These still get better after the 3,000 steps of the others.
  if not tiny:
    longer = {'train': {'steps': 10_000}, 'optimizer': {'eps': 1e-15}}
    others['Hope'] = others['Hope (plain heads, values adapt)'] = longer
  return ml_collections.ConfigDict({
      'task': 'formal_languages',
      'results': 'runs/formal_languages_tiny'
      if tiny
      else 'experiments/formal_languages/results',
      'columns': ('parity',) if tiny else LANGUAGES,
      'seeds': (0,) if tiny else (0, 1, 2),
      'counts': {'train': 64, 'bin0': 8, 'bin1': 8, 'bin2': 0, 'bin3': 0}
      if tiny
      else {},
      'rows': tuple(
          {'name': n, 'model': row} | others.get(n, {})
          for n, row in rows.items()
      ),
      'base': {
          'model': {
              'dim': 16 if tiny else 32,
              'layers': 1,
              'heads': 2,
              'remat': 'none',
          },
          'data': {'batch_size': 8 if tiny else 32, 'sequence_length': 50},
          'optimizer': {
              'learning_rate': 1e-2,
              'warmup_steps': 1 if tiny else 50,
              'weight_decay': 0.01,
          },
          'train': {
              'steps': 2 if tiny else 3000,
              'log_every': 1 if tiny else 100,
              'eval_every': 2 if tiny else 500,
              'max_seconds': 0.0 if tiny else 1500.0,
          },
      },
  })
