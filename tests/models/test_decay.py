"""Which parameters of which architecture weight decay reaches."""

import re

import jax
import numpy as np

from hope_jax.config import VitConfig
from hope_jax.models.vit import Vit
from hope_jax.optim import factory, leaves
from tests.models import variants

DECAYED = """
head
mlp/up/kernel mlp/gate/kernel mlp/down/kernel
continuum/level/mlp/up/kernel continuum/level/mlp/down/kernel
q/kernel k/kernel v/kernel out/kernel
mixer/q/kernel mixer/k/kernel mixer/v/kernel mixer/out/kernel
mixer/project_q/kernel mixer/project_k/kernel mixer/project_v/kernel
mixer/project_qk/kernel mixer/project_shared/kernel
mixer/gate/kernel mixer/input/kernel mixer/recurrent
mixer/w_alpha mixer/w_beta mixer/w_eta mixer/w_mu mixer/w_theta
mixer/basis_k mixer/basis_v
""".split()

LEFT_ALONE = """
embedding position_embedding
norm/scale norm_mixer/scale norm_mlp/scale norm_attention/scale
continuum/level/norm/scale continuum/weights
mixer/norm_q/scale mixer/norm_k/scale mixer/norm_out/scale
mixer/norm_scale mixer/norm_bias mixer/norm_out_scale mixer/norm_out_bias
mixer/bias mixer/bias_alpha mixer/bias_beta mixer/bias_eta mixer/bias_mu
mixer/bias_theta mixer/bias_conv mixer/dt_bias
mixer/a_log mixer/tau mixer/read_share
mixer/conv/kernel
mixer/initial mixer/w_q
mixer/memory_0 mixer/memory_1
mixer/memory_main_w mixer/memory_main_w_in mixer/memory_main_w_out
mixer/memory_k_w mixer/memory_k_w_in mixer/memory_k_w_out
mixer/memory_v_w mixer/memory_v_w_in mixer/memory_v_w_out
mixer/memory_q_w_in mixer/memory_q_w_out
mixer/memory_eta_w mixer/memory_eta_w_in mixer/memory_eta_w_out
mixer/memory_alpha_w mixer/memory_alpha_w_in mixer/memory_alpha_w_out
""".split()


def test_weight_decay_reaches_projections_alone():
  """If it fails, decay pulls something to zero that is no projection.

  It did: what SRWM starts from, the taps of convolutions, and `w_q`. A
  parameter that is new has to be written down above.
  """
  found = {}
  tokens = np.zeros((1, 4), np.int32)
  trees = {
      name: variants.param_shapes(variants.make(name), tokens)
      for name in variants.VARIANTS
  }
  vit = Vit(VitConfig(patch=4, dim=16, layers=1, heads=2, hidden=16), 3)
  images = np.zeros((1, 8, 8, 1), np.float32)
  trees['vit'] = variants.param_shapes(vit, images)
  for name, params in trees.items():
    mask = jax.tree_util.tree_leaves_with_path(factory.decay_mask(params))
    for path, decays in mask:
      leaf = '/'.join(leaves.keys(path)).removeprefix('layers/')
      leaf = re.sub(r'level_\d+', 'level', leaf)
      assert found.setdefault(leaf, decays) == decays, (name, leaf)
  expected = dict.fromkeys(DECAYED, True) | dict.fromkeys(LEFT_ALONE, False)
  assert found == expected
