"""The precision that products ask for, on whatever device."""

import jax
import jax.extend as jex
import jax.numpy as jnp
import pytest

from hope_jax.config import ModelConfig, VitConfig
from hope_jax.models import factory
from hope_jax.models.vit import Vit


def products(jaxpr):
  """Yields (dtype of the operands, precision) of every product inside."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn.invars[0].aval.dtype, eqn.params['precision']
    for value in jax.tree.leaves(
        list(eqn.params.values()),
        is_leaf=lambda x: isinstance(x, (jex.core.Jaxpr, jex.core.ClosedJaxpr)),
    ):
      inner = getattr(value, 'jaxpr', value)
      if isinstance(inner, jex.core.Jaxpr):
        yield from products(inner)


def asked(model, *inputs):
  """The precisions of float32 products in a loss and its gradients."""
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)

  def loss(params):
    outputs = model.apply(params, *inputs)
    return jnp.sum(outputs[0] if isinstance(outputs, tuple) else outputs)

  found = list(products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  assert len(found) > 9
  return {p and p[0].name for dtype, p in found if dtype == jnp.float32}


def language_model(architecture, **fields):
  config = ModelConfig(
      architecture=architecture, dim=16, layers=1, heads=2, vocab_size=32,
      **fields,
  )
  return asked(
      factory.language_model(config), jnp.zeros((1, 16), jnp.int32)
  )


@pytest.mark.parametrize('architecture', [
    'hope', 'hope_attention', 'transformer', 'deltanet', 'ttt_linear', 'lstm',
    'srwm', 'gated_deltanet_published',
])
def test_a_float32_model_is_float32_throughout(architecture):
  """If it fails, a GPU or a TPU rounds some of the products of a model."""
  assert language_model(architecture) == {'HIGHEST'}


def test_less_on_request():
  """If it fails, `precision` does not do what it says."""
  images = jnp.zeros((1, 8, 8, 1))
  sizes = dict(patch=4, dim=16, layers=1, heads=2, hidden=16)
  for name in ('high', 'highest'):
    assert language_model('transformer', precision=name) == {name.upper()}
    vit = Vit(VitConfig(precision=name, **sizes), 3)
    assert asked(vit, images) == {name.upper()}
  rough = language_model('hope', precision='default')
  assert rough & {None, 'DEFAULT'} and 'HIGHEST' in rough  # the recurrence
