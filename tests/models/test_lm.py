"""What every architecture of the language model owes its caller."""

import dataclasses
import functools
import math

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import optim
from hope_jax.config import (
  ContinuumConfig,
  ModelConfig,
  TitansConfig,
  TttConfig,
)
from hope_jax.models import layers
from hope_jax.models.lm import LanguageModel
from tests.marks import quick

B, T, VOCAB = 2, 22, 256
TOKENS = np.random.default_rng(7).integers(0, VOCAB, (B, T)).astype(np.int32)
MODELS = {
    'hope': dict(architecture='hope'),
    'hope_matrix': dict(
        architecture='hope',
        titans=dict(
            memory='matrix', read='boundary', projection_chunk=8,
            input_projection='streams', conv_init='identity',
        ),
    ),
    'hope_attention': dict(architecture='hope_attention'),
    'titans': dict(architecture='titans', titans=dict(memory='matrix')),
    'transformer': dict(architecture='transformer'),
    'ttt': dict(architecture='ttt'),
    'linear_attention': dict(architecture='linear_attention'),
    'retnet': dict(architecture='retnet'),
    'deltanet': dict(architecture='deltanet'),
    'gated_deltanet': dict(architecture='gated_deltanet'),
    'linear_attention_published': dict(
        architecture='linear_attention_published'
    ),
    'retnet_published': dict(architecture='retnet_published'),
    'deltanet_published': dict(architecture='deltanet_published'),
    'gated_deltanet_published': dict(architecture='gated_deltanet_published'),
    'ttt_linear': dict(
        architecture='ttt_linear', ttt=TttConfig(mini_batch=4)
    ),
    'ttt_mlp': dict(architecture='ttt_mlp', ttt=TttConfig(mini_batch=4)),
    'titans_lmm': dict(architecture='titans_lmm'),
    'lstm': dict(architecture='lstm'),
    'srwm': dict(architecture='srwm'),
    'signed': dict(
        architecture='hope',
        titans=dict(memory='matrix', eigenvalues='signed', conv=False),
    ),
}
# Their states are written by no inner learning rate that could be reported.
UNWRITTEN = (
    'hope_attention', 'transformer', 'linear_attention', 'retnet', 'deltanet',
    'gated_deltanet', 'linear_attention_published', 'retnet_published',
    'deltanet_published', 'gated_deltanet_published', 'ttt_linear', 'ttt_mlp',
    'titans_lmm', 'lstm', 'srwm',
)
# One of each kind: memories that modify themselves, a window of attention,
# delta rule, mini-batches, cells. Relatives have tests of their rules; memories
# of MLPs take long to compile, and `tests/nested` has them in every form.
KINDS = (
    'hope_matrix', 'hope_attention', 'transformer', 'gated_deltanet',
    'ttt_linear', 'titans_lmm', 'lstm', 'srwm',
)
MOST = pytest.mark.parametrize('name', quick(MODELS, KINDS))
# The default Hope, too.
ALL = pytest.mark.parametrize('name', quick(MODELS, ('hope', *KINDS)))


def make_config(name, **changes):
  """Tiny, but with several chunks in T, and a window shorter than T."""
  fields = {**MODELS[name], **changes}
  titans = TitansConfig(**{
      'chunk': 4, 'projection_chunk': 4, 'expansion': 2,
      **fields.pop('titans', {}),
  })
  return ModelConfig(**{
      'vocab_size': VOCAB, 'dim': 16, 'layers': 2, 'heads': 2,
      'attention_window': 16, 'titans': titans,
      'continuum': ContinuumConfig(periods=(1, 4)), **fields,
  })


@functools.cache
def initial(name):
  """Parameters as training starts from them."""
  model = LanguageModel(make_config(name))
  init = jax.jit(lambda rng: model.init(rng, jnp.zeros((1, 4), jnp.int32)))
  return meta.unbox(init(jax.random.key(0))['params'])


@functools.cache
def moved(name):
  """Parameters as training might leave them: no zeros, ones or symmetries."""
  leaves, tree = jax.tree.flatten(initial(name))
  rngs = jax.random.split(jax.random.key(1), len(leaves))
  # Logits that differ by more than their rounding, too.
  leaves = [
      w + 0.1 * jax.random.normal(r, w.shape) for r, w in zip(rngs, leaves)
  ]
  return jax.tree.unflatten(tree, leaves)


@functools.cache
def compiled(name, **changes):
  """(params, tokens, state, segment_ids) -> logits, state, diagnostics."""
  model = LanguageModel(make_config(name, **changes))

  @jax.jit
  def run(params, tokens, state=None, segment_ids=None):
    (logits, state), extra = model.apply(
        {'params': params}, tokens, state, segment_ids=segment_ids,
        mutable=['diagnostics'],
    )
    return logits, state, extra

  return run


def close(a, b, bound=1e-4):
  np.testing.assert_allclose(a, b, atol=bound, rtol=0)


@ALL
def test_the_first_loss_is_that_of_a_guess(name):
  """If this fails, training spends its first steps on unlearning."""
  logits, _, extra = compiled(name)(initial(name), TOKENS)
  assert logits.shape == (B, T, VOCAB) and logits.dtype == jnp.float32
  log_p = jax.nn.log_softmax(logits)
  loss = -jnp.take_along_axis(log_p[:, :-1], TOKENS[:, 1:, None], -1).mean()
  assert abs(loss - math.log(VOCAB)) < 0.3
  if 'diagnostics' in extra:  # one number a layer
    found = extra['diagnostics']['layers']['mixer']
    assert all(x.shape == (2,) for x in found.values())
    assert (found['mean_alpha'] >= 0.99).all(), 'forgets from the start'
    assert (found['mean_alpha'] < 1).all() or name == 'ttt'
    assert (found['max_write'] <= (2 if name == 'signed' else 1)).all()
    assert (found['mean_eta'] > 0).all()
  else:
    assert name in UNWRITTEN


@ALL
def test_calls_of_any_length_give_the_whole(name):
  """If this fails, generation and long texts see another model."""
  run, params = compiled(name), moved(name)
  whole, end, *_ = run(params, TOKENS)
  parts, state, start = [], None, 0
  for size in (11, *(1,) * 11) if name == 'hope' else (11, 7, 1, 1, 1, 1):
    logits, state, _ = run(params, TOKENS[:, start : start + size], state)
    parts.append(logits)
    start += size
  close(jnp.concatenate(parts, axis=1), whole)
  # The states agree too, and not only in what these tokens show of them.
  jax.tree.map(functools.partial(close, bound=1e-3), state, end)


IDS = np.array([
    [1] * 3 + [2] * 9 + [3] * 6 + [0] * 4,
    [0] * 2 + [7] * 1 + [8] * 11 + [0] * 3 + [4] * 5,
])


@MOST
def test_packed_documents_are_what_they_are_alone(name):
  """If this fails, a document sees the one before it, or the padding."""
  run, params = compiled(name), moved(name)
  packed, *_ = run(params, TOKENS, None, IDS)
  assert np.isfinite(packed).all()
  for b in range(B):
    for i in set(IDS[b]) - {0}:
      at = np.flatnonzero(IDS[b] == i)
      # The document at the front of a row, whatever follows it.
      row = np.roll(TOKENS[b], -at[0])
      alone, *_ = run(params, np.stack([row, row]))
      close(packed[b, at], alone[0, : len(at)])


@MOST
def test_rows_that_end_in_padding_can_go_on(name):
  """If this fails, texts of unequal length cannot share a batch."""
  run, params = compiled(name), moved(name)
  whole, *_ = run(params, TOKENS)
  lengths = (8, 14)
  first = np.zeros((B, T), int)
  second = np.zeros((B, T), int)
  rest = np.zeros((B, T), np.int32)
  for b, n in enumerate(lengths):
    first[b, :n] = 1
    second[b, : T - n] = 1
    rest[b, : T - n] = TOKENS[b, n:]
  start, state, _ = run(params, TOKENS, None, first)
  end, *_ = run(params, rest, state, second)
  for b, n in enumerate(lengths):
    close(start[b, :n], whole[b, :n])
    close(end[b, : T - n], whole[b, n:])


def test_a_window_counts_no_padding_however_often_rows_end():
  """If this fails, attention forgets a token for each place of padding.

  Two texts of 22 tokens in four calls, the window shorter than a call; a row
  may have nothing in a call. Then both go on without padding.
  """
  name = 'transformer'
  run, params = compiled(name, attention_window=6), moved(name)
  whole, _, _ = run(params, TOKENS)
  state, read = None, [0, 0]
  for lengths in ((10, 3), (0, 10), (7, 0), (3, 7)):
    tokens, ids = np.zeros((2, B, 10), np.int32)
    for b, n in enumerate(lengths):
      tokens[b, :n] = TOKENS[b, read[b] : read[b] + n]
      ids[b, :n] = 1
    logits, state, _ = run(params, tokens, state, ids)
    for b, n in enumerate(lengths):
      close(logits[b, :n], whole[b, read[b] : read[b] + n])
      read[b] += n
  logits, _, _ = run(params, TOKENS[:, 20:], state)
  close(logits, whole[:, 20:])


@MOST
@pytest.mark.parametrize('packed', [False, True])
def test_the_future_does_not_reach_the_past(name, packed):
  """If this fails, the model is trained on its own targets. Bit for bit."""
  run, params = compiled(name), moved(name)
  ids = (IDS,) if packed else ()
  before, *_ = run(params, TOKENS, None, *ids)
  for t in (1, 4, 8, 13, 17):
    changed = TOKENS.copy()
    changed[:, t:] = 3 + changed[:, t:] // 2
    after, *_ = run(params, changed, None, *ids)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert (before[:, t] != after[:, t]).any()


@ALL
def test_rows_are_independent(name):
  """If this fails, one text changes what is said of another."""
  run, params = compiled(name), moved(name)
  before, state, _ = run(params, TOKENS)
  after, new, _ = run(params, np.stack([TOKENS[0], TOKENS[1] // 2]))
  np.testing.assert_array_equal(before[0], after[0])
  assert (before[1] != after[1]).any()

  def row(axis):
    return lambda x, y: np.testing.assert_array_equal(
        jnp.take(x, 0, axis), jnp.take(y, 0, axis)
    )

  jax.tree.map(row(1), state['layers'], new['layers'])
  jax.tree.map(row(0), state['place'], new['place'])


@MOST
def test_a_gradient_reaches_every_parameter(name):
  """If this fails, a part of the model never learns."""
  model = LanguageModel(make_config(name))

  @jax.jit
  @jax.grad
  def gradient(params):
    logits, _ = model.apply({'params': params}, TOKENS, segment_ids=IDS)
    return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

  def check(path, g):
    assert np.isfinite(g).all(), jax.tree_util.keystr(path)
    # Each layer of the stack by itself.
    if 'layers' in jax.tree_util.keystr(path):
      assert (np.abs(g).reshape(2, -1).max(axis=1) > 0).all(), path
    assert np.abs(g).max() > 0, path

  jax.tree.map_with_path(check, gradient(initial(name)))


@pytest.mark.parametrize(
    'name',
    quick(
        [
            'transformer', 'hope_attention', 'lstm', 'srwm', 'gated_deltanet',
            'hope_matrix',
        ],
        ['hope_attention', 'lstm', 'srwm'],
    ),
)
def test_dot_general_makes_every_dense_product(name):
  """If this fails, DGD trains other weights than those its optimizer steps.

  Values stay; of the gradients those of the weights of `Dense` change, and no
  other.
  """
  plain = LanguageModel(make_config(name))

  def gradient(model):
    @jax.jit
    @jax.value_and_grad
    def loss(params):
      logits, _ = model.apply({'params': params}, TOKENS)
      return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    return loss(moved(name))

  value, expected = gradient(plain)
  other, found = gradient(plain.clone(dot_general=optim.delta_dot_general()))
  close(other, value)
  changed = {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for (path, a), b in zip(
          jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)
      )
      if np.abs(a - b).max() > 1e-3 * np.abs(b).max()
  }
  assert changed == {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree_util.tree_leaves_with_path(found)
      if path[-1].key == 'kernel' and path[-2].key != 'conv'
  }


@pytest.mark.parametrize('name', ['hope', 'transformer'])
def test_bfloat16_stays_close(name):
  """If this fails, a norm, gate or state is kept in bfloat16."""
  exact, *_ = compiled(name)(initial(name), TOKENS)
  rough, near, _ = compiled(name, dtype='bfloat16')(initial(name), TOKENS)
  assert rough.dtype == jnp.float32
  error = jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact)
  assert error < 0.05
  if name == 'hope':
    memories = near['layers']['titans'].memories
    assert all(w.dtype == jnp.float32 for w in jax.tree.leaves(memories))

def test_tied_embeddings_share_one_matrix():
  """If this fails, tying adds parameters or starts from a wild guess."""
  config = make_config('transformer', tie_embeddings=True)
  model = LanguageModel(config)
  params = meta.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))['params']
  assert 'head' not in params
  logits, _ = model.apply({'params': params}, TOKENS)
  loss = jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])
  assert abs(loss - math.log(VOCAB)) < 0.3


CHANGES = ({'remat': 'parts'}, {'remat': 'block'}, {'unroll': 2})


@pytest.mark.parametrize(
    ('name', 'changes'),
    quick(
        [
            (name, changes)
            for name in ('hope_matrix', 'hope_attention')
            for changes in CHANGES
        ],
        [
            ('hope_matrix', {'remat': 'parts'}),
            ('hope_attention', {'remat': 'block'}),
            ('hope_attention', {'unroll': 2}),
        ],
    ),
)
def test_memory_and_loops_change_nothing(monkeypatch, name, changes):
  """If this fails, saving memory changes the model, its state or gradients."""
  monkeypatch.setattr(layers, 'TILE', 8)  # two tiles and a rest
  ids = jnp.asarray([[1] * 9 + [2] * 13, [1] * 18 + [0] * 4])

  def run(**changes):
    model = LanguageModel(make_config(name, **{'remat': 'none'} | changes))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
      logits, state = model.apply(
          {'params': params}, TOKENS, segment_ids=ids
      )
      shares = jax.nn.log_softmax(logits) * (ids > 0)[..., None]
      return jnp.mean(shares**2), (logits, state)

    return jax.jit(loss)(moved(name))

  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
      run(),
      run(**changes),
  )


def test_depth_and_width_follow_the_configuration():
  """If this fails, levels of a CMS cost more than the MLP they replace."""
  config = dataclasses.replace(make_config('hope'), dim=64)
  shapes = jax.eval_shape(
      LanguageModel(config).init, jax.random.key(0), TOKENS
  )
  layers = meta.unbox(shapes)['params']['layers']
  cms = layers['continuum']
  assert set(cms) == {'level_0', 'level_1'}
  assert all(x.shape[0] == 2 for x in jax.tree.leaves(layers))
  matrices = [x for x in jax.tree.leaves(cms) if x.ndim == 3]
  assert sum(x.size for x in matrices) == 2 * 2 * 4 * 64 * 64


GATES = {
    'signed': lambda g: np.clip(g / 6 + 0.5, 0, 1),
    'positive': lambda g: 1 / (1 + np.exp(-g)),
}


@pytest.mark.parametrize('eigenvalues', quick(GATES, ['signed']))
def test_heads_start_with_their_rates(eigenvalues):
  """If it fails, heads that count start like those that turn over."""
  model = LanguageModel(ModelConfig(
      vocab_size=4, dim=16, layers=1, heads=4,
      titans=TitansConfig(
          memory='matrix', eigenvalues=eigenvalues, plain_heads=1,
          eta_init=0.75, plain_eta_init=0.25,
      ),
  ))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  bias = meta.unbox(params)['params']['layers']['mixer']['bias_eta'][0]
  np.testing.assert_allclose(
      GATES[eigenvalues](bias), [0.75, 0.75, 0.75, 0.25], atol=1e-6
  )
