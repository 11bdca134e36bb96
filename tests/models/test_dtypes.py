"""Models under JAX's two switches for dtypes: 64-bit types, strict promotion.

Both are on at once: what is widened meets what is not, which strict promotion
refuses.
"""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  OptimizerConfig,
  TrainConfig,
  VitConfig,
)
from hope_jax.data import pipeline
from hope_jax.data.tokenizer import ByteTokenizer
from hope_jax.infer.session import Session
from hope_jax.models.factory import language_model
from hope_jax.models.vit import Vit
from hope_jax.sharding import unbox
from hope_jax.train import loop
from tests.marks import quick
from tests.models import variants

# An array, that is; a literal may stay as Python has it.
WIDE = re.compile(r'f64\[\d')
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2, 2, 0]])


@contextlib.contextmanager
def switches():
  """64-bit types and strict promotion."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion('strict'):
    yield


def passes(model):
  """(params, tokens, segments) -> gradient, logits, and two calls' states.

  Packed documents, then a call that goes on from them.
  """

  def loss(params, tokens, segments):
    logits, state = model.apply(
        {'params': params}, tokens, segment_ids=segments
    )
    return jnp.sum(logits), (logits, state)

  def run(params, tokens, segments):
    gradient, (logits, state) = jax.grad(loss, has_aux=True)(
        params, tokens, segments
    )
    after = model.apply({'params': params}, tokens[:, :3], state)[1]
    return gradient, logits, state, after

  return run


def kinds(tree):
  """The shape and the dtype of each leaf."""
  return jax.tree.map(lambda x: f'{x.dtype}{x.shape}', tree)


# One of each kind of state, and each way to have other dtypes.
QUICK = (
    'hope', 'hope, integer', 'hope, bfloat16', 'hope_attention', 'titans_lmm',
    'hope_attention, in context', 'gated_deltanet', 'ttt_linear, bfloat16',
    'transformer, tied', 'lstm, bfloat16', 'srwm, bfloat16',
)


@pytest.mark.parametrize('name', quick(variants.VARIANTS, QUICK))
def test_switches_change_nothing(name):
  """If it fails, a user's switch widens a model, or keeps it from running.

  Four architectures did not start in 64-bit mode, the others had float64
  parameters; under strict promotion none ran.
  """
  model = variants.make(name)
  tokens = np.zeros((2, 8), np.int32)
  params = variants.param_shapes(model, tokens)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  inputs = tokens, SEGMENTS.astype(np.int32)
  with switches():
    assert kinds(variants.param_shapes(model, tokens)) == kinds(params)
    program, (gradient, logits, state, after) = jax.make_jaxpr(
        passes(model), return_shape=True
    )(params, *inputs)
  assert not WIDE.search(str(program))
  assert kinds(gradient) == kinds(params)
  assert logits.dtype == np.float32
  assert kinds(after) == kinds(state)
  wide = {x.dtype for x in jax.tree.leaves(state)} - {
      np.dtype(x) for x in (jnp.float32, jnp.bfloat16, jnp.int32)
  }
  assert not wide


@pytest.mark.parametrize(
    'name', quick(['retnet', 'ttt_linear', 'lstm'], ['retnet', 'lstm'])
)
def test_numbers_are_the_same(name):
  """If it fails, a seed gives another model in 64-bit mode."""
  model = variants.make(name)
  tokens = np.arange(16, dtype=np.int32).reshape(2, 8)

  def run():
    params = unbox(jax.jit(model.init)(jax.random.key(3), tokens))
    return params, jax.jit(model.apply)(params, tokens)[0]

  expected = run()
  with switches():
    got = run()
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      got, expected,
  )


def test_vision_transformer():
  """If it fails, a study of optimizers does not run under the switches."""
  model = Vit(VitConfig(patch=4, dim=16, layers=1, heads=2, hidden=16), 3)
  images = np.zeros((1, 8, 8, 1), np.float32)
  with switches():
    params = variants.param_shapes(model, images)
    loss = lambda params: jnp.sum(model.apply({'params': params}, images))
    program, gradient = jax.make_jaxpr(
        jax.grad(loss), return_shape=True
    )(params)
  assert not WIDE.search(str(program))
  assert kinds(gradient) == kinds(params)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_run_and_a_session():
  """If it fails, a run under the switches is another run, or breaks.

  Two steps, then a session of what they made.
  """
  config = Config(
      model=ModelConfig(architecture='lstm', dim=8, layers=1),
      data=DataConfig(sequence_length=8, batch_size=2),
      optimizer=OptimizerConfig(warmup_steps=0),
      train=TrainConfig(steps=2, log_every=1),
  )
  model = language_model(config.model)

  def run():
    batches = pipeline.train_batches(config.data)
    done = loop.train(model, batches, config, progress=False)
    params = done.state.params
    session = Session(model, params, ByteTokenizer())
    nats = session.feed('memory')
    text = session.generate(5, seed=1)
    losses = [record['loss'] for record in done.history]
    carried = kinds((params, done.state.opt_state, session.state))
    return carried, text, np.array([*losses, nats])

  carried, text, numbers = run()
  with switches():
    wide = run()
  assert wide[:2] == (carried, text)
  np.testing.assert_allclose(wide[2], numbers, rtol=1e-5)
