"""Every architecture, and the forms that make it other parameters or code."""

import jax
import numpy as np

from hope_jax.config import (
  ContinuumConfig,
  LinearConfig,
  ModelConfig,
  TitansConfig,
)
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.config.model import PRINTED
from hope_jax.models.factory import language_model
from hope_jax.sharding import unbox
from hope_jax.types import PyTree

_MATRIX = {'titans': TitansConfig(memory='matrix')}

# 'architecture' or 'architecture, form' -> fields of ModelConfig.
VARIANTS = {name: {} for name in ARCHITECTURES} | {
    'hope, printed': {'titans': TitansConfig(**PRINTED, adaptive_q=True)},
    'hope, integer': {
        'titans': TitansConfig(
            memory='matrix', arithmetic='integer', eigenvalues='signed',
            plain_heads=1, input_projection='streams',
        ),
        'continuum': ContinuumConfig(variant='independent'),
    },
    'hope, bfloat16': {
        'titans': TitansConfig(memory='matrix', grid='aligned', conv=False),
        'dtype': 'bfloat16',
    },
    'hope_attention, in context': {
        'continuum': ContinuumConfig(
            periods=(4, 8), regime='in_context', variant='nested'
        )
    },
    'hope_attention, bfloat16': {'dtype': 'bfloat16'},
    'transformer, tied': {'tie_embeddings': True},
    'titans_lmm, matrix': _MATRIX,
    'gated_deltanet, signed': {'linear': LinearConfig(eigenvalues='signed')},
    'gated_deltanet_published, bfloat16': {'dtype': 'bfloat16'},
    'ttt_linear, bfloat16': {'dtype': 'bfloat16'},
    'lstm, bfloat16': {'dtype': 'bfloat16'},
    'srwm, bfloat16': {'dtype': 'bfloat16'},
}


def make(name: str):
  """Returns a small model of a variant."""
  return language_model(
      ModelConfig(
          architecture=name.split(',')[0], dim=16, heads=2, layers=1,
          vocab_size=32, attention_window=8, **VARIANTS[name],
      )
  )


def param_shapes(model, inputs: np.ndarray) -> PyTree:
  """Returns the parameters of a model as shapes, without boxes."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
  return unbox(shapes)['params']
