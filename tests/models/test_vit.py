"""The Vision Transformer, and DGD's gradient for all its dense layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import optim, sharding
from hope_jax.config import ConfigError, VitConfig
from hope_jax.models.vit import Vit

CONFIG = VitConfig(patch=2, dim=8, layers=2, heads=2, hidden=16)
IMAGES = jax.random.normal(jax.random.key(0), (3, 4, 6, 1))


def initial(model, images=IMAGES):
  init = jax.jit(model.init)
  return sharding.unbox(init(jax.random.key(1), images)['params'])


def test_patches_are_squares_of_the_image():
  """If it fails, a patch mixes pixels that are not neighbours.

  Without position and mixing of patches the mean over them is blind to their
  order: images with the same patches in other places look the same.
  """
  model = Vit(CONFIG, 5)
  params = initial(model)
  params['position_embedding'] *= 0
  swapped = jnp.concatenate([IMAGES[:, :, 2:], IMAGES[:, :, :2]], axis=2)
  out = [model.apply({'params': params}, x) for x in (IMAGES, swapped)]
  assert out[0].shape == (3, 5) and out[0].dtype == jnp.float32
  np.testing.assert_allclose(*out, atol=1e-5)
  shifted = jnp.roll(IMAGES, 1, axis=2)  # across the patches' borders
  assert not np.allclose(out[0], model.apply({'params': params}, shifted))


def test_images_of_a_batch_do_not_meet():
  model = Vit(CONFIG, 5)
  params = initial(model)
  alone = model.apply({'params': params}, IMAGES[1:2])
  together = model.apply({'params': params}, IMAGES)
  np.testing.assert_allclose(alone[0], together[1], atol=1e-5)


@pytest.mark.parametrize(
    'sizes, millions', [({}, 21.24), ({'dim': 768, 'heads': 12, 'hidden': 3072},
                                      84.95)]
)
def test_the_paper_s_sizes(sizes, millions):
  """24 M and 86 M (NL §9.7) with patch embedding and a smaller head."""
  shapes = jax.eval_shape(
      Vit(VitConfig(**sizes), 10).init, jax.random.key(0),
      jnp.zeros((1, 224, 224, 3)),
  )['params']
  blocks = sum(x.size for x in jax.tree.leaves(shapes['layers'])) / 1e6
  assert blocks == pytest.approx(millions, abs=0.01)


def test_heads_must_divide():
  with pytest.raises(ConfigError, match='heads=3, dim=8'):
    VitConfig(dim=8, heads=3)


def test_dot_general_reaches_every_matrix():
  """If it fails, DGD trains other weights than those its optimizer steps.

  Every stacked matrix gets the delta term, everything else its plain gradient;
  values do not change. The last product's is checked by hand.
  """
  model = Vit(CONFIG, 5)
  params = initial(model)

  def loss(params, model=model):
    return jnp.mean(model.apply({'params': params}, IMAGES) ** 2)

  plain = jax.grad(loss)(params)
  dgd = model.clone(dot_general=optim.delta_dot_general())
  value, delta = jax.value_and_grad(loss)(params, dgd)
  assert value == loss(params)
  changed = jax.tree.map(
      lambda a, b: 'matrix' if not np.allclose(a, b) else 'other', plain, delta
  )
  assert changed == optim.matrix_labels(params)

  # The weight gradient differs by x^T y / rows: that of the layer's own output.
  name, kernel = 'down', params['layers']['mlp']['down']['kernel']
  extra = delta['layers']['mlp'][name]['kernel'] - (
      plain['layers']['mlp'][name]['kernel']
  )
  along = jnp.einsum('lio,lio->', extra, kernel)
  assert along > 0  # <x^T x W, W>: it shrinks the weight along its inputs
