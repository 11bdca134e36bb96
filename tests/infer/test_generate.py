"""Sampling, against the plainest way to do it: the whole text, every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import build_model, sharding
from hope_jax.config import ModelConfig
from hope_jax.infer import generate as generate_lib
from tests import standin

MODEL = standin.Standin()
PROMPT = jnp.array([[1, 2, 3, 4, 5], [9, 3, 3, 0, 1]], jnp.int32)


@pytest.fixture(scope='module')
def params():
  tokens = np.zeros((1, 4), np.int32)
  init = jax.jit(MODEL.init)
  return sharding.unbox(init(jax.random.key(0), tokens)['params'])


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

  701 tokens are fed as 512 + 2 * 64 + 7 * 8 + 5 * 1.
  """
  tokens = np.random.default_rng(0).integers(0, standin.VOCAB, (2, 701))
  sizes = [piece.stop - piece.start for piece in generate_lib.pieces(701)]
  assert sizes == [512, 64, 64, *[8] * 7, *[1] * 5]
  hidden, _ = generate_lib.prefill(MODEL, params, tokens)
  _, expected_state = MODEL.apply({'params': params}, tokens)
  np.testing.assert_allclose(hidden, expected_state[0], rtol=1e-5)


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


def test_the_random_numbers_go_on(params):
  """If it fails, text written in several calls is drawn from fewer numbers.

  300 tokens are more than the writing loop has room for.
  """
  whole = sample(params, PROMPT, 300, 1.0).tokens
  first = sample(params, PROMPT, 7, 1.0)
  rest = generate_lib.generate(
      MODEL, params, first.tokens[:, -1:], max_tokens=293, temperature=1.0,
      rng=jax.random.key(0), drawn=7, state=first.state,
  )
  np.testing.assert_array_equal(first.tokens, whole[:, :7])
  np.testing.assert_array_equal(rest.tokens, whole[:, 7:])


def test_it_stops_once_all_rows_have_ended(params, monkeypatch):
  """If it fails, what follows the end of a document is written, too."""
  whole = np.asarray(sample(params, PROMPT, 300, 1.0).tokens)
  # One that the second row writes after the first, beyond a call of the loop.
  first = {t: [list(row).index(t) for row in whole] for t in {*whole[0]} if
           all(t in row for row in whole)}
  stop, ends = max(first.items(), key=lambda item: max(item[1]))
  monkeypatch.setattr(generate_lib, '_ROOM', max(ends))
  found = generate_lib.generate(
      MODEL, params, PROMPT, max_tokens=300, temperature=1.0,
      rng=jax.random.key(0), stop=int(stop),
  )
  assert min(ends) < max(ends)
  np.testing.assert_array_equal(found.tokens, whole[:, : max(ends) + 1])


def test_programs_are_few_whatever_the_lengths(params):
  """If it fails, each length of prompt or answer is compiled for anew.

  Four sizes of pieces and one loop, each from a fresh memory and from another.
  """
  sample(params, PROMPT, 2)  # What is compiled once, of whatever model.
  # Another model, whose programs no other test has compiled.
  model = standin.Standin(ModelConfig(vocab_size=standin.VOCAB + 1))
  params = {**params, 'embedding': jnp.ones((standin.VOCAB + 1, standin.DIM))}
  compiled = []

  def listen(event, *_, **__):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  tokens = np.zeros((2, 1200), np.int32)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for length in (*range(1, 40), 63, 64, 65, 200, 511, 512, 513, 700, 1200):
      state = generate_lib.prefill(model, params, tokens[:, :length])
      generate_lib.prefill(model, params, tokens[:, : 1 + length // 2], state)
    for count in (*range(1, 12), 300):
      for begin in (None, state):
        generate_lib.generate(
            model, params, tokens[:, :1], max_tokens=count, state=begin,
            temperature=0.1 * (count % 3), rng=jax.random.key(count),
        )
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert len(compiled) <= 2 * len(generate_lib.SIZES) + 2


def test_memory_holds_no_logits_of_the_prompt():
  """If it fails, a prompt of a large vocabulary costs gigabytes.

  One row of 512 logits of 32,000 would be 65 MB.
  """
  config = ModelConfig(
      architecture='gated_deltanet', vocab_size=32_000, dim=16, layers=1,
      heads=2,
  )
  model = build_model(config)
  tokens = jnp.zeros((1, generate_lib.SIZES[0]), jnp.int32)
  shapes = sharding.unbox(
      jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  )
  feed = generate_lib._feed.lower(model, shapes, tokens, None).compile()
  memory = feed.memory_analysis()
  assert memory and memory.temp_size_in_bytes < 5e6


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'prompt': PROMPT[:, :0]}, 'T >= 1'),
        ({'n': 0}, 'max_tokens'),
        ({'n': 2.5}, 'max_tokens'),
        ({'n': 2**31}, 'max_tokens'),
        ({'n': 10**400}, 'max_tokens'),
        *(({'temperature': t}, 'temperature')
          for t in (-1.0, -0.5e-45, 1e-45, 1e-300, 1e39, 10**400, 'hot', None,
                    float('nan'), float('inf'), -float('inf'))),
    ],
)
def test_bad_arguments(params, change, message):
  """If it fails, nonsense is answered with an error from inside JAX."""
  arguments = {'prompt': PROMPT, 'n': 2, 'temperature': 1.0} | change
  with pytest.raises(ValueError, match=message) as error:
    sample(params, **arguments)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('temperature', [0, 1e-6, 1e6])
def test_the_ends_of_the_range(params, temperature):
  """If it fails, a temperature that is allowed gives no text.

  The lowest is the likeliest token; the highest is any.
  """
  found = sample(params, PROMPT, 40, temperature).tokens
  likeliest = sample(params, PROMPT, 40).tokens
  assert (found == likeliest).all() == (temperature < 1)
  if temperature > 1:
    assert len(np.unique(found)) > standin.VOCAB // 2


def test_broken_parameters_are_said(params):
  """If it fails, a model of NaN writes token 0 for ever, and exits with 0."""
  broken = jax.tree.map(lambda p: p * jnp.nan, params)
  with pytest.raises(FloatingPointError, match='not finite'):
    sample(broken, PROMPT, 4, 1.0)
