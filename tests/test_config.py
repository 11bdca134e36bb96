"""What the configuration refuses, in one line that says why."""

import pathlib
import runpy

import pytest

from hope_jax import config as config_lib
from hope_jax.config import (
  PRINTED,
  ConfigError,
  ContinuumConfig,
  ModelConfig,
  architectures,
)
from hope_jax.config.architectures import ARCHITECTURES


@pytest.mark.parametrize(
    ('values', 'complaint'),
    [
        (
            {'model': {'titans': {'eigenvalues': 'signed', 'objective': 'l2'}}},
            "eigenvalues='signed' needs objective='delta'; got 'l2'",
        ),
        (
            {'model': {'architecture': 'gated_delta_net'}},
            "did you mean 'gated_deltanet'?",
        ),
        ({'model': {'architecture': 'mamba'}}, 'known: hope, hope_attention'),
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
        (
            {'model': {'continuum': {'variant': 'nested'}}},
            "got regime='outer'",
        ),
        (
            {'model': {'continuum': {'outer_gradient': 'exact'}}},
            "outer_gradient is read under regime='in_context' only",
        ),
        (
            {'model': {'continuum': {'regime': 'in_context'}}},
            'must be at least 2 tokens; got (1, 4, 16)',
        ),
        (
            {
                'model': {
                    'continuum': {
                        'regime': 'in_context', 'periods': (8, 16),
                        'learning_rates': (0.1, 0.1, 0.1),
                    },
                },
            },
            '3 for 2 periods',
        ),
        (
            {
                'model': {
                    'continuum': {'regime': 'in_context', 'periods': (6, 12)},
                },
                'data': {'align': 16},
            },
            'align=16, periods=(6, 12)',
        ),
    ],
)
def test_a_mistake_is_named(values, complaint):
  """If it fails, an experiment runs with settings that contradict it."""
  with pytest.raises(ConfigError, match='^[^\n]+$') as error:
    config_lib.from_dict(values)
  assert complaint in str(error.value)


def test_a_configuration_holds_what_its_architecture_fixes():
  """If it fails, config.json says something else than what ran."""
  config = config_lib.from_dict({
      'model': {
          'architecture': 'ttt',
          'titans': {'dgd': True, 'memory': 'matrix', 'chunk': 4},
      },
  })
  titans = config_lib.to_dict(config)['model']['titans']
  assert not titans['dgd'] and not titans['momentum']
  assert titans['memory'] == 'mlp' and titans['chunk'] == 4
  assert config_lib.from_dict(config_lib.to_dict(config)) == config


@pytest.mark.parametrize(
    ('architecture', 'given', 'complaint'),
    [
        # Fixed, and given as what it is by default elsewhere.
        ('titans', {'titans': {'dgd': True}}, 'model.titans.dgd is False'),
        ('ttt', {'titans.memory': 'matrix'}, "model.titans.memory is 'mlp'"),
        ('deltanet', {'titans': {'conv_init': 'recall'}}, "is 'identity'"),
        # Not read.
        ('transformer', {'titans': {'chunk': 8}}, 'model.titans.chunk is not'),
        ('transformer', {'continuum': {'periods': (1,)}}, 'continuum.periods'),
        ('deltanet', {'titans': {'chunk': 8}}, 'model.titans.chunk is not'),
        ('titans', {'continuum': {'periods': (1,)}}, 'continuum.periods'),
        ('lstm', {'heads': 4}, 'model.heads is not'),
        ('hope', {'attention_window': 8}, 'model.attention_window is not'),
        ('deltanet', {'rope_base': 1e4}, 'model.rope_base is not'),
    ],
)
def test_a_setting_without_effect_is_refused(architecture, given, complaint):
  """If it fails, a setting is ignored, or overruled, without a word."""
  config = ModelConfig(architecture=architecture)
  with pytest.raises(ConfigError, match='^[^\n]+$') as error:
    architectures.require_read(config, given)
  assert complaint in str(error.value) and architecture in str(error.value)


@pytest.mark.parametrize(
    ('architecture', 'given'),
    [
        ('hope', {'titans': {'dgd': False}, 'continuum': {'periods': (1,)}}),
        ('titans', {'titans': {'dgd': False, 'chunk': 8}, 'heads': 2}),
        ('deltanet', {'titans': {'conv': False}, 'dim': 8}),
        ('retnet', {'rope_base': 100.0}),
        ('transformer', {'attention_window': 8, 'unroll': 2}),
    ],
)
def test_a_setting_with_effect_is_taken(architecture, given):
  """If it fails, an architecture cannot be set up."""
  architectures.require_read(ModelConfig(architecture=architecture), given)


def test_one_rate_is_every_levels():
  """If it fails, a level's rate is not what config.json says."""
  config = ContinuumConfig(regime='in_context', periods=(2, 4))
  assert config.learning_rates == (0.01, 0.01)


def test_entries_name_fields_that_exist():
  """If it fails, a misspelled entry lets every setting through."""
  fields = config_lib.to_dict(ModelConfig())
  for entry in ARCHITECTURES.values():
    for name in (*entry.reads, *entry.fixed):
      group = fields
      for part in name.split('.'):
        group = group[part]


def test_a_name_is_registered_once():
  """If it fails, an extension can replace an architecture unnoticed."""
  with pytest.raises(ConfigError, match="'hope' is there already"):
    architectures.register('hope', ARCHITECTURES['hope'])


@pytest.mark.parametrize('name', ['ablation', 'mad', 'mqar_why', 'needles'])
def test_experiments_say_the_printed_layer_alike(name):
  """If it fails, a row that is called literal is not what the paper prints."""
  path = pathlib.Path(__file__).parents[1] / 'experiments' / f'{name}.py'
  assert PRINTED.items() <= runpy.run_path(str(path))['LITERAL'].items()
