"""Memories of whole numbers against counters that are Python integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import integers, titans
from hope_jax.nested.memory import Matrix
from tests.nested.titans_cases import options

K = 4
# What a symbol adds to the plain head, and by how often it turns the other.
ADDS = {'a': 1, 'b': -1, 'r': 0}
TURNS = {'a': 1, 'b': 0, 'r': 0}
# A reset is told from a and b by its key's first number, b from a by its
# second; the signs, which make the key, are those of all three.
KEYS = {'a': (1, 1, 1, 1), 'b': (1, 9, 1, 1), 'r': (9, 1, 1, 1)}
VALUES = {'a': (1, 1, 1, 1), 'b': (-1, -1, -1, -1), 'r': (1, 1, 1, 1)}


def streams(string):
  """A string as [1, T, 2, K] queries, keys and values of two equal heads."""
  rows = {
      'q': [(1, 1, 1, 1)] * len(string),
      'k': [KEYS[s] for s in string],
      'v': [VALUES[s] for s in string],
  }
  return titans.Streams(*(
      np.repeat(np.array(x, np.float32)[None, :, None], 2, axis=2)
      for x in rows.values()
  ))


def made(count):
  """Weights set by hand: the first head turns over, the second, plain, counts.

  Args:
    count: what the second holds at the start; the first holds 3.
  """
  zero = np.zeros((2, K, K), np.float32)

  def gate(*rows):
    return Matrix(np.array(rows, np.float32)[..., None])

  memories = {
      # One count is 1 / K in every number: corner times corner.
      'memory': Matrix(
          np.array([3, count], np.float32)[:, None, None] / K * np.ones((K, K))
      ),
      'k': Matrix(zero), 'v': Matrix(zero),
      # Of unit vectors, (1, 1, 1, 1) / 2 for a; hard sigmoids end at 3 and -3.
      'eta': gate((-100, -100, 0, 0), (-100, 0, 0, 0)),
      'alpha': gate((0, 0, 0, 0), (-100, 0, 0, 0)),
  }
  return {
      'memories': memories,
      'w_q': np.repeat(np.eye(K, dtype=np.float32)[None], 2, axis=0),
      'bias_eta': np.array([105, 72], np.float32),
      'bias_alpha': np.array([50, 72], np.float32),
  }


@functools.cache
def layer(chunk):
  return jax.jit(functools.partial(titans.layer, options=options(
      arithmetic='integer', eigenvalues='signed', target='value', read='after',
      plain_heads=1, momentum=False, adaptive=(), chunk=chunk,
      projection_chunk=chunk,
  )))


def counts(string, count):
  """What integers hold after each symbol: turned over, and counted."""
  turned, counted, pairs = 3, count, []
  for symbol in string:
    turned *= (-1) ** TURNS[symbol]
    counted = 0 if symbol == 'r' else counted + ADDS[symbol]
    pairs.append((turned, counted))
  return np.array(pairs, np.float64)


@pytest.mark.parametrize('chunk', [1, 16])
@pytest.mark.parametrize('string,count', [
    (''.join(np.random.default_rng(0).choice(list('aaabbbbr'), 200)), 7),
    ('a' * 90 + 'b' * 110, 1),
    ('aaaabbbbabraabbabrrbbbaa', 2**24 - 4),
])
def test_counts_are_those_of_integers(chunk, string, count):
  """If it fails, a count drifts, or a reset leaves something behind.

  In float32, to the last bit, up to 2^24, at every symbol: counting by one,
  clearing at once, turning over.
  """
  o, state, _ = layer(chunk)(made(count), streams(string))
  expected = counts(string, count)
  np.testing.assert_array_equal(
      np.asarray(state.memories['memory'].w),
      np.broadcast_to(expected[-1][:, None, None] / K, (1, 2, K, K)),
  )
  # A query is a corner too: it finds count / 2 in every number, and adds 1 / 2.
  read = np.float32(0.5) + np.float32(0.5) * expected.astype(np.float32)
  np.testing.assert_array_equal(
      np.asarray(o), np.broadcast_to(
          (read / (1 + np.abs(read)))[None, ..., None], o.shape
      ),
  )


def test_rounding_hands_on_the_derivative_of_what_it_rounds():
  """If it fails, rounded keys, rates and retention learn nothing, or amiss."""
  x = jnp.array([-3.0, -0.4, 0.0, 0.7, 1.5])
  of = lambda f: jax.grad(lambda x: jnp.sum(f(x)))(x)
  np.testing.assert_array_equal(of(integers.corner), [0, 1, 1, 1, 0])
  np.testing.assert_array_equal(of(integers.whole), np.ones(5))
  np.testing.assert_array_equal(integers.whole(x), [-3, 0, 0, 1, 2])
  gates = jnp.array([-9.0, -2.0, 1.0, 9.0])
  kept, slope = jax.value_and_grad(
      lambda g: jnp.sum(jnp.exp(integers.log_retention(g)))
  )(gates)
  assert kept == 2
  # exp undoes the logarithm, at a cleared memory as at a kept one.
  np.testing.assert_allclose(slope, [0, 1 / 6, 1 / 6, 0], rtol=1e-5)
