r"""The paper's own comparison: ViT-S/16 and ViT-B/16 on ImageNet-21k (NL §9.7).

  python -m hope_jax.main study \
      --config=experiments/optimizers/imagenet.py

and with `imagenet.py:base` for the larger.

Any set of images that TFDS has prepared with file_format='array_record' will
do; set the names and the number of classes below. Not run here: it wants a pod,
and this runner trains on one device. The paper gives the number of classes, the
patch size and the width of the MLPs, and neither steps, batch nor rates.
"""

import ml_collections


def get_config(form: str = 'full') -> ml_collections.ConfigDict:
  if form not in ('full', 'base'):
    raise ValueError(f"the form is 'full' or 'base'; got {form!r}")
  base = form == 'base'
  return ml_collections.ConfigDict({
      'task': 'optimizers',
      'results': f'runs/optimizers_imagenet_{form}',
      'section': 'imagenet',
      'columns': ('tfds',),
      'rows': ({'name': 'adamw'}, {'name': 'muon'}, {'name': 'm3'}),
      'trials': 6,
      'seeds': (1, 2, 3),
      'vit': {
          'patch': 16,
          'dim': 768 if base else 384,
          'layers': 12,
          'heads': 12 if base else 6,
          'hidden': 3072 if base else 1536,
          'dtype': 'bfloat16',
      },
      'images': {
          'source': 'tfds',
          'path': 'imagenet21k_p@train',
          'heldout_path': 'imagenet21k_p@validation',
          'classes': 10_450,
          'image_size': 224,
          'channels': 3,
          'batch_size': 1024,
      },
      'base': {
          'optimizer': {'warmup_steps': 10_000, 'clip_norm': 1.0},
          'train': {'steps': 100_000},
      },
  })
