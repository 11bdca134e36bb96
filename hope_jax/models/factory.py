"""The language model that a configuration asks for."""

from hope_jax.config import ModelConfig
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.models.in_context import InContextModel
from hope_jax.models.lm import LanguageModel


def language_model(config: ModelConfig) -> LanguageModel | InContextModel:
  """A model with `init(rng, tokens)` and `apply(variables, tokens, state)`.

  Args:
    config: sizes and choices; a CMS in the 'in_context' regime wraps the model
      so that every sequence has fast weights of its own.

  Returns:
    The model; both kinds have the same interface and the same parameters.
  """
  has_levels = ARCHITECTURES[config.architecture].levels
  if has_levels and config.continuum.regime == 'in_context':
    return InContextModel(config)
  return LanguageModel(config)
