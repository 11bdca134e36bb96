"""Linear attention, RetNet and the delta rules against what their papers say.

The oracles are float64 NumPy: the quadratic forms, and delta rules a token at a
time. They know nothing of alpha, eta and u.
"""

import functools

import jax
import numpy as np
import pytest

from hope_jax.kernels.dgd.api import dgd_recurrence
from hope_jax.nested import linear_memory

B, T, H, K, V = 2, 21, 2, 4, 3
RNG = np.random.default_rng(0)
Q, KEYS = RNG.normal(size=(2, B, T, H, K))
VALUES = RNG.normal(size=(B, T, H, V))
BETA = RNG.uniform(0.1, 0.9, size=(B, T, H))
LOG_ALPHA = -RNG.uniform(0.01, 0.5, size=(B, T, H))
POSITIVE = np.exp(Q), np.exp(KEYS)
UNIT = KEYS / np.linalg.norm(KEYS, axis=-1, keepdims=True)


def linear_attention(q, k, v):
  """sum_s (q_t k_s) v_s / sum_s (q_t k_s) over s <= t: the quadratic form."""
  scores = np.tril(np.einsum('bthk,bshk->bhts', q, k))
  scores /= scores.sum(axis=-1, keepdims=True)
  return np.einsum('bhts,bshv->bthv', scores, v)


def retention(q, k, v):
  """sum_s gamma_h^(t - s) (q_t k_s) v_s (2307.08621, Eq. 5)."""
  gap = np.arange(T)[:, None] - np.arange(T)
  gamma = np.array([1 - 1 / 32, 1 - 1 / 64])[:, None, None]
  scores = np.tril(np.einsum('bthk,bshk->bhts', q, k)) * gamma ** np.abs(gap)
  return np.einsum('bhts,bshv->bthv', scores, v)


def delta_rule(q, k, v, beta, alpha):
  """S = alpha S; S += beta (v - S k) k^T; o = S q, a token at a time."""
  o = np.zeros(v.shape)
  for b in range(B):
    for h in range(H):
      s = np.zeros((V, K))
      for t in range(T):
        s = alpha[b, t, h] * s
        error = v[b, t, h] - s @ k[b, t, h]
        s = s + beta[b, t, h] * np.outer(error, k[b, t, h])
        o[b, t, h] = s @ q[b, t, h]
  return o


def run(rule, q, k, beta=None, log_alpha=None, **kwargs):
  """As the mixer does it."""
  writes = linear_memory.writes(rule, VALUES, beta, log_alpha)
  o, state = linear_memory.layer(
      q, k, writes, erase=linear_memory.ERASES[rule], **kwargs
  )
  if rule == 'linear_attention':
    o = o[..., :-1] / o[..., -1:]
  return o, state


CASES = {
    'linear_attention': (
        POSITIVE, {}, lambda: linear_attention(*POSITIVE, VALUES)
    ),
    'retnet': ((Q, KEYS), {}, lambda: retention(Q, KEYS, VALUES)),
    'deltanet': (
        (Q, UNIT), dict(beta=BETA),
        lambda: delta_rule(Q, UNIT, VALUES, BETA, np.ones(BETA.shape)),
    ),
    'gated_deltanet': (
        (Q, UNIT), dict(beta=BETA, log_alpha=LOG_ALPHA),
        lambda: delta_rule(Q, UNIT, VALUES, BETA, np.exp(LOG_ALPHA)),
    ),
}


@pytest.mark.parametrize('rule', list(CASES))
def test_a_rule_is_what_its_paper_says(rule):
  """If it fails, a baseline is another model than its name."""
  arguments, gates, expected = CASES[rule]
  o, _ = run(rule, *arguments, **gates)
  np.testing.assert_allclose(o, expected(), atol=1e-4)


@pytest.mark.parametrize('rule', ['deltanet', 'gated_deltanet'])
def test_a_delta_rule_is_a_setting_of_dgd(rule):
  """If it fails, the delta rules have a recurrence of their own."""
  (q, k), gates, _ = CASES[rule]
  o, state = run(rule, q, k, **gates)
  write = linear_memory.writes(
      rule, VALUES, gates['beta'], gates.get('log_alpha')
  )
  args = [np.asarray(x, np.float32) for x in (q, k, *write)]
  again, end = dgd_recurrence(*args, read='post')
  np.testing.assert_allclose(o, again, atol=1e-5)
  np.testing.assert_allclose(state, end, atol=1e-5)


@pytest.mark.parametrize('rule', ['retnet', 'gated_deltanet'])
def test_documents_padding_and_pieces(rule):
  """If it fails, a document sees its neighbours, or a cut changes a text."""
  (q, k), gates, _ = CASES[rule]
  jitted = jax.jit(functools.partial(run, rule))
  whole, end = jitted(q, k, **gates)

  def piece(a, b, state):
    cut = {n: x[:, a:b] for n, x in gates.items()}
    writes = linear_memory.writes(
        rule, VALUES[:, a:b], cut.get('beta'), cut.get('log_alpha')
    )
    return linear_memory.layer(
        q[:, a:b], k[:, a:b], writes, state,
        erase=linear_memory.ERASES[rule],
    )

  first, state = piece(0, 8, None)
  second, state = piece(8, T, state)
  np.testing.assert_allclose(
      np.concatenate([first, second], axis=1), whole, atol=1e-5
  )
  np.testing.assert_allclose(state, end, atol=1e-5)
  # Eight tokens, three of padding, then a document of its own.
  starts = np.zeros((B, T), bool)
  starts[:, [0, 11]] = True
  present = np.ones((B, T), bool)
  present[:, 8:11] = False
  packed, _ = jitted(q, k, **gates, starts=starts, present=present)
  np.testing.assert_allclose(packed[:, :8], first, atol=1e-5)
  alone, _ = piece(11, T, None)
  np.testing.assert_allclose(packed[:, 11:], alone, atol=1e-5)
