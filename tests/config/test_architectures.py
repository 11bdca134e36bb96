"""What an experiment, and what the command line, may say of an architecture."""

import pytest

from hope_jax import run
from hope_jax.config import ConfigError


@pytest.mark.parametrize(
    ('overrides', 'complaint'),
    [
        ({'model.architecture': 'titans', 'model.titans.dgd': True},
         "model.titans.dgd is False in architecture 'titans'"),
        ({'model.architecture': 'titans', 'model.titans.objective': 'delta'},
         "model.titans.objective is 'l2'"),
        ({'model.architecture': 'transformer', 'model.titans.chunk': 8},
         "model.titans.chunk is not read by architecture 'transformer'"),
        ({'model.rope_base': 1e4}, "model.rope_base is not read by"),
        ({'model.architecture': 'hop'}, "did you mean 'hope'?"),
        ({'optimizer.name': 'm3', 'optimizer.eps': 1e-8}, 'not read by'),
        ({'optimizer.options.perod': 3, 'optimizer.name': 'm3'}, "'period'?"),
        ({'optimizer.name': 'adamv'}, "did you mean 'adam'?"),
    ],
)
def test_a_setting_without_effect_is_refused(overrides, complaint):
  """If it fails, a run is not what its command line says."""
  with pytest.raises(ConfigError) as caught:
    run.load('tiny', overrides)
  assert complaint in str(caught.value) and '\n' not in str(caught.value)


def test_a_file_speaks_of_its_own_architecture(tmp_path):
  """If it fails, an experiment cannot be tried with another architecture.

  What the file says for Hope's memories is not meant for a Transformer; what it
  says for the architecture that it names must be read.
  """
  other = {'model.architecture': 'transformer', 'optimizer.name': 'm3'}
  config = run.load('tiny', other)
  assert config.model.dim == 32 and config.model.titans.chunk == 16
  assert config.optimizer.learning_rate == 3e-3
  path = tmp_path / 'file.py'
  model = {'architecture': 'titans', 'titans': {'dgd': True}}
  path.write_text(f'def get_config():\n  return {{"model": {model}}}\n')
  with pytest.raises(ConfigError, match=r'titans\.dgd is False'):
    run.load(str(path))
  hope = run.load(str(path), {'model.architecture': 'hope'})
  assert hope.model.titans.dgd
