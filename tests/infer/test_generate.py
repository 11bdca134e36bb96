"""Sampling, against the plainest way to do it: the whole text, every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import sharding
from hope_jax.infer import generate as generate_lib
from tests import standin

MODEL = standin.Standin()
PROMPT = jnp.array([[1, 2, 3, 4, 5], [9, 3, 3, 0, 1]], jnp.int32)


@pytest.fixture(scope='module')
def params():
  tokens = np.zeros((1, 4), np.int32)
  return sharding.unbox(MODEL.init(jax.random.key(0), tokens)['params'])


def sample(params, prompt, n, temperature=0.0, seed=0, state=None):
  return generate_lib.generate(
      MODEL, params, prompt, max_tokens=n, temperature=temperature,
      rng=jax.random.key(seed), state=state,
  )


def test_greedy_equals_the_whole_text_every_time(params):
  """If it fails, the state handed on is not the memory of what was written."""
  text = PROMPT
  for _ in range(6):
    logits, _ = MODEL.apply({'params': params}, text)
    token = jnp.argmax(logits[:, -1], axis=-1)
    text = jnp.concatenate([text, token[:, None].astype(jnp.int32)], axis=1)
  found = sample(params, PROMPT, 6)
  np.testing.assert_array_equal(found.tokens, text[:, 5:])


def test_going_on(params):
  """If it fails, text written in two calls differs from one call."""
  whole = sample(params, PROMPT, 7).tokens
  first = sample(params, PROMPT, 4)
  rest = sample(params, first.tokens[:, -1:], 3, state=first.state)
  np.testing.assert_array_equal(
      jnp.concatenate([first.tokens, rest.tokens], axis=1), whole
  )


def test_several_calls_equal_one(params):
  """If it fails, a long prompt is read otherwise than a short one.

  701 tokens are fed as 512 + 128 + 32 + 16 + 8 + 4 + 1.
  """
  tokens = jnp.asarray(
      np.random.default_rng(0).integers(0, standin.VOCAB, (2, 701)), jnp.int32
  )
  logits, state = generate_lib.prefill(MODEL, params, tokens)
  expected, expected_state = MODEL.apply({'params': params}, tokens)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(state[0], expected_state[0], rtol=1e-5)


def test_sampling_follows_the_distribution(params):
  """If it fails, temperature or probabilities are wrong.

  2000 draws of one token against softmax(logits / T), within 5 sigma.
  """
  prompt = jnp.broadcast_to(PROMPT[:1], (2000, 5))
  logits, _ = MODEL.apply({'params': params}, PROMPT[:1])
  for temperature in (0.5, 2.0):
    tokens = sample(params, prompt, 1, temperature).tokens
    p = np.asarray(jax.nn.softmax(logits[0, -1] / temperature))
    counts = np.bincount(np.asarray(tokens[:, 0]), minlength=standin.VOCAB)
    sigma = np.sqrt(2000 * p * (1 - p)) + 1
    assert (np.abs(counts - 2000 * p) < 5 * sigma).all()


def test_seed(params):
  """If it fails, a sample cannot be repeated, or never changes."""
  a, b, c = (sample(params, PROMPT, 8, 1.0, seed).tokens for seed in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'prompt': PROMPT[:, :0]}, 'T >= 1'),
        ({'n': 0}, 'max_tokens'),
        ({'temperature': -1.0}, 'temperature'),
    ],
)
def test_bad_arguments(params, change, message):
  """If it fails, nonsense is answered with an error from inside JAX."""
  arguments = {'prompt': PROMPT, 'n': 2, 'temperature': 1.0} | change
  with pytest.raises(ValueError, match=message):
    sample(params, **arguments)
