"""The FLOP floor that benchmarks are reported against."""

import dataclasses
import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from benchmarks import flops
from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.models.lm import LanguageModel

SIZE = {'dim': 64, 'layers': 2, 'heads': 2, 'vocab_size': 64}
HOPE = ModelConfig(**SIZE)


def counted(jaxpr: jax.extend.core.Jaxpr) -> int:
  """FLOPs of every matrix product that a program runs, loops unrolled."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      inner = math.prod(shape[axis] for axis in contracted)
      total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
    times = equation.params.get('length', 1)
    for value in equation.params.values():
      if isinstance(value, jax.extend.core.ClosedJaxpr):
        value = value.jaxpr
      if isinstance(value, jax.extend.core.Jaxpr):
        total += times * counted(value)
  return total


@pytest.mark.parametrize(
    'config',
    [
        HOPE,
        dataclasses.replace(HOPE, titans=TitansConfig(memory='matrix')),
        dataclasses.replace(
            HOPE, titans=TitansConfig(momentum=True, adaptive_q=True)
        ),
        dataclasses.replace(
            HOPE,
            titans=TitansConfig(
                projection_rank=0, projection_expansion=2, target='bounded',
                gate_input='key', read='boundary',
            ),
        ),
        dataclasses.replace(HOPE, architecture='titans'),
        dataclasses.replace(HOPE, architecture='transformer'),
    ],
    ids=['mlp', 'matrix', 'momentum', 'full', 'titans', 'transformer'],
)
def test_floor_is_just_below_what_the_forward_pass_runs(config):
  """If it fails, the fraction of the floor in the table means nothing."""
  model = LanguageModel(config)
  tokens = jnp.zeros((1, 64), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']

  def forward(params):
    return model.apply({'params': params}, tokens)[0]

  runs = counted(jax.make_jaxpr(forward)(params).jaxpr)
  floor = flops.train_step(config, params, *tokens.shape) / 3
  # Above it: the triangular inverse, masked halves of attention, and products
  # done twice or on padded widths because that is faster.
  assert 1.0 <= runs / floor < 1.5
