"""What the configuration refuses, in one line that says why."""

import pytest

from hope_jax import config as config_lib


@pytest.mark.parametrize(
    ('values', 'complaint'),
    [
        (
            {'model': {'titans': {'eigenvalues': 'signed', 'objective': 'l2'}}},
            "eigenvalues='signed' needs objective='delta'; got 'l2'",
        ),
        ({'model': {'architecture': 'mamba'}}, "'srwm'; got 'mamba'"),
        ({'model': {'titans': {'eigenvalue': 'signed'}}}, "'eigenvalues'"),
        (
            {
                'model': {
                    'architecture': 'ttt', 'titans': {'grid': 'aligned'},
                },
                'data': {'align': 1},
            },
            'align=1, chunk=16',
        ),
    ],
)
def test_a_mistake_is_named(values, complaint):
  """If it fails, an experiment runs with settings that contradict it."""
  with pytest.raises(config_lib.ConfigError, match='^[^\n]+$') as error:
    config_lib.from_dict(values)
  assert complaint in str(error.value)
