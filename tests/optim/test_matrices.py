"""Which leaves are matrices, and of which axes, in Flax's own layers."""

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import optim

Numbers = optax.contrib.MuonDimensionNumbers


class Model(nn.Module):
  """Attention, convolutions and a general layer, as Flax has them."""

  @nn.compact
  def __call__(self, x):
    x = nn.MultiHeadDotProductAttention(num_heads=2)(x)
    x = nn.Conv(6, (3,))(nn.LayerNorm()(x))
    return nn.Conv(6, (3,), feature_group_count=6)(x)


LINEN = {
    'Conv_0/kernel': '[24, 6]',
    'MultiHeadDotProductAttention_0/key/kernel': '[8, 8]',
    'MultiHeadDotProductAttention_0/out/kernel': '[8, 8]',
    'MultiHeadDotProductAttention_0/query/kernel': '[8, 8]',
    'MultiHeadDotProductAttention_0/value/kernel': '[8, 8]',
}


def matrices_in(table):
  """name -> what `describe` says is in a leaf that is a matrix."""
  rows = [row.split('  ') for row in table.splitlines()]
  rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
  return {row[0]: row[2] for row in rows if row[-1] == 'matrix'}


def test_linen_and_its_layers_stacked(recwarn):
  """If it fails, heads are orthogonalised apart, or mixed with layers."""
  x = jnp.ones((1, 5, 8))
  params = Model().init(jax.random.key(0), x)['params']
  assert matrices_in(optim.describe(params)) == LINEN
  stacked = jax.tree.map(lambda p: jnp.stack([p] * 3), {'layers': params})
  found = matrices_in(optim.describe(stacked, stacked='layers'))
  assert found == {f'layers/{k}': f'3 x {v}' for k, v in LINEN.items()}
  assert not recwarn.list


def test_nnx():
  model = nnx.MultiHeadAttention(
      num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0)
  )
  params = nnx.state(model, nnx.Param)
  found = matrices_in(optim.describe(params))
  assert found == {
      f'{name}/kernel': '[8, 8]' for name in ('key', 'out', 'query', 'value')
  }


def test_what_is_no_map_is_not_orthogonalised():
  """If it fails, an embedding, a gate's rate or an adapter is, unseen."""
  params = {
      'wte': jnp.ones((9, 4)), 'token_emb': {'w': jnp.ones((9, 4))},
      'unembed': jnp.ones((4, 9)), 'cls_token': jnp.ones((1, 1, 4)),
      'mamba': {'A_log': jnp.ones((4, 4)), 'in_proj': jnp.ones((4, 4))},
      'adapter': {'lora_a': jnp.ones((4, 2)), 'lora_b': jnp.ones((2, 4))},
      'mixer': {'conv': {'kernel': jnp.ones((4, 4))}},
      'token_mixing': {'kernel': jnp.ones((4, 4))},
  }
  assert set(matrices_in(optim.describe(params))) == {
      'mamba/in_proj', 'token_mixing/kernel'
  }


@pytest.mark.parametrize('name', ['muon', 'adamuon', 'm3'])
def test_an_attention_kernel_is_one_matrix(name):
  """Its update is that of the kernel written as a matrix [in, heads * dim]."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  kernels = {
      'query': {'kernel': draw(8, 2, 4)}, 'out': {'kernel': draw(2, 4, 6)},
      'conv': {'kernel': draw(3, 4, 5)},
  }
  flat = {
      'query': kernels['query']['kernel'].reshape(8, 8),
      'out': kernels['out']['kernel'].reshape(8, 6),
      'conv_as_matrix': kernels['conv']['kernel'].reshape(12, 5),
  }
  tx = getattr(optim, 'scale_by_' + name)()
  got, _ = tx.update(kernels, tx.init(kernels))
  want, _ = tx.update(flat, tx.init(flat))
  for a, b in zip(got.values(), want.values()):
    np.testing.assert_allclose(
        a['kernel'].reshape(b.shape), b, rtol=2e-4, atol=1e-6
    )


NUMBERS = {'a': Numbers(0, (1, 2)), 'b': Numbers((0, 1), 2), 'c': None,
           'd': Numbers(1, 0)}


@pytest.mark.parametrize('given', [NUMBERS, lambda _: NUMBERS])
def test_dimension_numbers_are_optax_s(given):
  """If it fails, a table that works with contrib.muon means another thing."""
  rng = np.random.default_rng(0)
  shapes = {'a': (8, 2, 4), 'b': (2, 4, 6), 'c': (4, 4), 'd': (3, 5)}
  params = {
      k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()
  }
  ours = optim.muon(0.1, weight_dimension_numbers=given)
  theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers=NUMBERS)
  got, _ = jax.jit(ours.update)(params, ours.init(params), params)
  want, _ = jax.jit(theirs.update)(params, theirs.init(params), params)
  for k in params:
    np.testing.assert_allclose(got[k], want[k], rtol=1e-3, atol=1e-6)
  table = optim.describe(params, weight_dimension_numbers=given)
  assert matrices_in(table) == {'a': '[8, 8]', 'b': '[8, 6]', 'd': '[5, 3]'}


@pytest.mark.parametrize(
    'numbers', [None, Numbers(0, 3), Numbers(0, 0), Numbers(0, (1, -1))]
)
def test_numbers_that_are_no_axes(numbers):
  tx = optim.scale_by_muon(weight_dimension_numbers={'w': numbers})
  with pytest.raises(ValueError, match="leaf 'w'"):
    tx.init({'w': jnp.ones((4, 3))})


def test_labels_and_numbers_together_are_refused():
  with pytest.raises(ValueError, match='not both'):
    optim.muon(0.1, label_fn=lambda p: 'matrix', weight_dimension_numbers={})


def test_axes_that_a_name_does_not_tell_are_asked_about():
  """If it fails, nobody learns that a general layer's axes were guessed."""
  params = {'DenseGeneral_0': {'kernel': jnp.ones((8, 2, 3))},
            'experts': {'kernel': jnp.ones((8, 2, 3))}}
  with pytest.warns(UserWarning, match='weight_dimension_numbers') as warned:
    found = matrices_in(optim.describe(params))
  assert found == {'DenseGeneral_0/kernel': '[8, 6]',
                   'experts/kernel': '8 x [2, 3]'}
  assert len(warned) == 2
