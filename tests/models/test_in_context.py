"""The in-context regime around a language model."""

import dataclasses
import functools

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import main, optim
from hope_jax.config import ConfigError, ContinuumConfig, ModelConfig
from hope_jax.models.factory import language_model
from hope_jax.models.lm import LanguageModel
from hope_jax.train import metrics
from tests.marks import quick

CONFIG = ModelConfig(
    architecture='hope_attention',
    dim=8,
    layers=1,
    heads=2,
    attention_window=32,
    remat='none',
    continuum=ContinuumConfig(
        periods=(4, 8),
        learning_rates=(0.5, 0.3),
        regime='in_context',
        variant='nested',
    ),
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 18), 0, 256)


@pytest.fixture(scope='module')
def hope():
  """The model, its parameters, and `apply` compiled for whole calls."""
  model = language_model(CONFIG)
  params = meta.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS)['params'])
  return model, params, jax.jit(
      lambda tokens, ids=None, state=None: model.apply(
          {'params': params}, tokens, state, segment_ids=ids
      )
  )


def test_it_learns_after_the_first_chunk(hope):
  """If this fails, fast weights never move, or move before they may."""
  model, params, apply = hope
  plain, _ = jax.jit(LanguageModel(CONFIG).apply)({'params': params}, TOKENS)
  logits, state = apply(TOKENS)
  gap = np.abs(logits - plain).max(axis=(0, 2))
  assert gap[:4].max() < 1e-5
  assert gap[4:].max() > 1e-2
  assert int(state.fill) == 2


@pytest.mark.parametrize('cut', quick([3, 4, 13], [3, 4]))
def test_two_calls_are_one(hope, cut):
  """If this fails, a text in two calls is not the text."""
  model, params, apply = hope
  whole, end = apply(TOKENS)
  first, state = apply(TOKENS[:, :cut])
  second, last = apply(TOKENS[:, cut:], None, state)
  both = np.concatenate([first, second], axis=1)
  np.testing.assert_allclose(both, whole, atol=1e-5)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      last.fast, end.fast,
  )


def test_a_compiled_loop_goes_on_token_by_token(hope):
  """If this fails, decoding does not continue what prefill began."""
  model, params, apply = hope
  whole, _ = apply(TOKENS)
  _, state = apply(TOKENS[:, :7])
  rest, _ = jax.jit(lambda t, s: model.apply({'params': params}, t, s))(
      TOKENS[:, 7:], state
  )
  np.testing.assert_allclose(rest, whole[:, 7:], atol=1e-5)


def test_positions_are_those_asked_for(hope):
  """If this fails, a task's answers are looked for at other tokens."""
  model, params, apply = hope
  whole, _ = apply(TOKENS)
  at = jnp.array([[3, 17], [9, 0]])
  logits, _ = jax.jit(
      lambda tokens: model.apply({'params': params}, tokens, positions=at)
  )(TOKENS)
  expected = jnp.take_along_axis(whole, at[..., None], axis=1)
  np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_the_outer_optimizer_s_products_do_not_teach_fast_weights(hope):
  """If this fails, a sequence learns otherwise under another outer optimizer.

  The weight gradients of DGD are not those of Eq. 71.
  """
  model, params, apply = hope
  dgd = model.clone(dot_general=optim.delta_dot_general())
  logits, _ = jax.jit(lambda tokens: dgd.apply({'params': params}, tokens))(
      TOKENS
  )
  np.testing.assert_allclose(logits, apply(TOKENS)[0], atol=1e-5)


def test_causal_bit_for_bit(hope):
  """If this fails, a prediction knows the future."""
  _, _, apply = hope
  before, _ = apply(TOKENS)
  after, _ = apply(TOKENS.at[:, 11].add(1))
  np.testing.assert_array_equal(before[:, :11], after[:, :11])


def test_documents_are_apart(hope):
  """If this fails, a document's fast weights reach the next, or start late."""
  _, _, apply = hope
  ids = jnp.asarray([[1] * 8 + [2] * 10] * 2)
  packed, _ = apply(TOKENS, ids)
  alone, _ = apply(TOKENS[:, 8:])
  np.testing.assert_allclose(packed[:, 8:], alone, atol=1e-5)
  astray = jnp.asarray([[1] * 7 + [2] * 11, [1] * 18])
  logits, _ = apply(TOKENS, astray)
  assert np.isnan(logits[0]).any() and not np.isnan(logits[1]).any()


@pytest.mark.parametrize(
    ('cut', 'pads', 'exact'),
    quick(
        [
            (8, 4, True), (8, 8, True), (7, 1, False), (8, 2, False),
            (7, 5, False),
        ],
        [(8, 4, True), (7, 1, False), (7, 5, False)],
    ),
)
@pytest.mark.parametrize('named', quick([True, False], [True]))
def test_padding_does_not_count_or_is_refused(hope, cut, pads, exact, named):
  """If this fails, a row that waits for others in its batch is another text."""
  model, params, apply = hope
  whole, _ = apply(TOKENS[:, :12])
  _, state = apply(
      jnp.pad(TOKENS[:, :cut], ((0, 0), (0, pads))),
      jnp.asarray([[1] * cut + [0] * pads] * 2),
  )
  rest = TOKENS[:, cut:12]
  ids = jnp.ones_like(rest) if named else None
  go_on = functools.partial(model.apply, {'params': params}, rest, state)
  if not exact:
    with pytest.raises(ConfigError, match='row 0 .* behind padding'):
      go_on(segment_ids=ids)
  else:
    found, _ = go_on(segment_ids=ids)
    np.testing.assert_allclose(found, whole[:, cut:], atol=1e-5)
  if (cut + pads) % 4 == 0:  # Another document may begin there.
    go_on(segment_ids=jnp.full_like(rest, 2))


def test_two_documents_in_two_calls(hope):
  """If this fails, a call may not end inside a row's second document."""
  model, params, apply = hope
  ids = jnp.asarray([[1] * 4 + [2] * 8] * 2)
  whole, _ = apply(TOKENS[:, :12], ids)
  first, state = apply(TOKENS[:, :6], ids[:, :6])
  second, _ = apply(TOKENS[:, 6:12], ids[:, 6:], state)
  both = np.concatenate([first, second], axis=1)
  np.testing.assert_allclose(both, whole, atol=1e-5)


def test_rows_are_independent(hope):
  """If this fails, fast weights are shared across the batch."""
  _, _, apply = hope
  both, _ = apply(TOKENS)
  one, _ = apply(TOKENS.at[1].set(0))
  np.testing.assert_array_equal(both[0], one[0])


@pytest.mark.parametrize('outer', quick(['exact', 'first_order'], ['exact']))
def test_initial_states_learn(hope, outer):
  """If this fails, no outer gradient reaches a level's initial state."""
  _, params, _ = hope
  levels = dataclasses.replace(CONFIG.continuum, outer_gradient=outer)
  model = language_model(dataclasses.replace(CONFIG, continuum=levels))

  @jax.jit
  @jax.grad
  def gradient(params):
    logits, _ = model.apply({'params': params}, TOKENS)
    return jnp.mean(logits[..., 0] ** 2)

  for leaf in jax.tree.leaves(gradient(params)['layers']['continuum']):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


EXPERIMENT = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
      'model': {
          'architecture': %r, 'dim': 8, 'layers': 1, 'heads': 2,
          'continuum': {
              'regime': 'in_context', 'periods': (4, 8), 'variant': %r,
              'outer_gradient': %r,
          },
      },
      'data': {'sequence_length': 32, 'batch_size': 2, 'align': 4},
      'optimizer': {'warmup_steps': 0},
      'train': {'steps': 2, 'log_every': 1, 'eval_batches': 1},
  })
"""


@pytest.mark.parametrize(
    ('architecture', 'variant', 'outer'),
    quick(
        [
            ('hope_attention', 'sequential', 'first_order'),
            ('hope_attention', 'nested', 'exact'),
            ('hope_attention', 'independent', 'first_order'),
            ('hope_attention', 'sequential', 'exact'),
            ('hope_attention', 'nested', 'first_order'),
            ('hope_attention', 'independent', 'exact'),
            ('hope', 'sequential', 'first_order'),
            ('hope', 'nested', 'exact'),
        ],
        [('hope_attention', 'nested', 'exact')],
    ),
)
def test_main_trains_it(tmp_path, architecture, variant, outer):
  """If this fails, the regime is on no path from the command line.

  A first gradient in the hundreds would mean that one input, such as the key of
  a first token, outweighs all others.
  """
  experiment = tmp_path / 'experiment.py'
  experiment.write_text(EXPERIMENT % (architecture, variant, outer))
  workdir = str(tmp_path / 'run')
  args = ['train', f'--config={experiment}', f'--workdir={workdir}']
  assert main.main(args) == 0
  records = metrics.read(workdir)
  train = [r for r in records if r['split'] == 'train']
  assert [r['step'] for r in train] == [1, 2]
  assert all(0.1 < r['grad_norm'] < 10 for r in train)
  assert [r['step'] for r in records if r['split'] == 'heldout'] == [2]
