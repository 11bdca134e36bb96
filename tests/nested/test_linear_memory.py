"""Linear attention, RetNet and the delta rules against what their papers say.

The oracles are float64 NumPy: the quadratic forms, and delta rules a token at a
time. They know nothing of alpha, eta and u.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.kernels.dgd.api import dgd_recurrence
from hope_jax.nested import linear_memory
from tests.marks import quick

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


def table(rule, v, beta=None, log_alpha=None):
  """What a rule writes, as the mixer asks for it."""
  if not linear_memory.ERASES[rule]:
    return linear_memory.added_writes(rule, v)
  gated = rule == 'gated_deltanet'
  return linear_memory.delta_writes(v, beta, log_alpha if gated else None)


def run(rule, q, k, beta=None, log_alpha=None, **kwargs):
  """As the mixer does it."""
  q, k, values, beta, log_alpha = (
      None if x is None else jnp.asarray(x)
      for x in (q, k, VALUES, beta, log_alpha)
  )
  writes = table(rule, values, beta, log_alpha)
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
def test_a_rule_is_what_its_paper_says(x64, rule):
  """If it fails, a baseline is another model than its name."""
  arguments, gates, expected = CASES[rule]
  o, _ = run(rule, *arguments, **gates)
  np.testing.assert_allclose(o, expected(), atol=1e-12)


def test_gates_at_their_ends():
  """If it fails, a token that forgets everything turns a run into NaN.

  In float32, where exp(-200) is 0, and values are divided by retentions.
  """
  rng = np.random.default_rng(2)
  log_alpha = rng.choice([0.0, -1e-8, -20.0, -200.0], size=BETA.shape)
  beta = rng.choice([0.0, 1.0, 2.0], size=BETA.shape)

  def f(log_alpha, beta):
    args = [jnp.asarray(x, jnp.float32) for x in (Q, UNIT, VALUES)]
    writes = linear_memory.delta_writes(args[2], beta, log_alpha)
    return linear_memory.layer(*args[:2], writes, erase=True)[0]

  gates = [jnp.asarray(x, jnp.float32) for x in (log_alpha, beta)]
  o, gradient = f(*gates), jax.grad(lambda *x: f(*x).sum(), (0, 1))(*gates)
  expected = delta_rule(Q, UNIT, VALUES, beta, np.exp(log_alpha))
  assert np.linalg.norm(o - expected) < 1e-6 * np.linalg.norm(expected)
  assert all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize('rule', ['deltanet', 'gated_deltanet'])
def test_a_delta_rule_is_a_setting_of_dgd(rule):
  """If it fails, the delta rules have a recurrence of their own."""
  (q, k), gates, _ = CASES[rule]
  o, state = run(rule, q, k, **gates)
  write = table(rule, VALUES, gates['beta'], gates.get('log_alpha'))
  args = [np.asarray(x, np.float32) for x in (q, k, *write)]
  again, end = dgd_recurrence(*args, read='post')
  np.testing.assert_allclose(o, again, atol=1e-5)
  np.testing.assert_allclose(state, end, atol=1e-5)


def read(rule, at, state=None, **kwargs):
  """The rule on the tokens of a slice."""
  (q, k), gates, _ = CASES[rule]
  cut = lambda x: None if x is None else jnp.asarray(x[:, at])
  writes = table(
      rule, cut(VALUES), cut(gates.get('beta')), cut(gates.get('log_alpha'))
  )
  return linear_memory.layer(
      cut(q), cut(k), writes, state, erase=linear_memory.ERASES[rule], **kwargs
  )


@pytest.mark.parametrize('rule', list(CASES))
def test_documents_padding_and_cuts(x64, rule):
  """If it fails, a document sees its neighbours, or a cut changes a text."""
  whole, end = read(rule, slice(0, T))
  first, state = read(rule, slice(0, 8))
  second, state = read(rule, slice(8, T), state)
  np.testing.assert_allclose(
      np.concatenate([first, second], axis=1), whole, atol=1e-12
  )
  np.testing.assert_allclose(state, end, atol=1e-12)
  # Eight tokens, three of padding, then a document of its own.
  starts = np.zeros((B, T), bool)
  starts[:, [0, 11]] = True
  present = np.ones((B, T), bool)
  present[:, 8:11] = False
  packed, last = read(rule, slice(0, T), starts=starts, present=present)
  np.testing.assert_allclose(packed[:, :8], first, atol=1e-12)
  alone, end = read(rule, slice(11, T))
  np.testing.assert_allclose(packed[:, 11:], alone, atol=1e-12)
  np.testing.assert_allclose(last, end, atol=1e-12)


@pytest.mark.parametrize(
    'rule', quick(CASES, ['linear_attention', 'gated_deltanet'])
)
def test_a_row_of_many_documents_goes_on_from_its_state(x64, rule):
  """If it fails, short documents answer NaN, or start from what was handed in.

  The first row goes on with the document that it was handed, the second starts
  one with its first token; each has documents of a single token.
  """
  state = read(rule, slice(0, 5))[1]
  starts = np.zeros((B, T), bool)
  starts[0, [2, 3, 4, 11, 20]] = True
  starts[1, [0, 1, 2, 16]] = True
  o, end = read(rule, slice(0, T), state, starts=starts)
  for b in range(B):
    cuts = [0, *(t for t in np.flatnonzero(starts[b]) if t), T]
    for start, stop in zip(cuts, cuts[1:]):
      handed = state if start == 0 and not starts[b, 0] else None
      alone, last = read(rule, slice(start, stop), handed)
      np.testing.assert_allclose(o[b, start:stop], alone[b], atol=1e-12)
    np.testing.assert_allclose(end[b], last[b], atol=1e-12)


@pytest.mark.parametrize('rule', list(CASES))
def test_the_tpu_kernel_runs_it(rule):
  """If it fails, a TPU is left without its kernel, or trains another model."""
  rng = np.random.default_rng(1)
  q, k, v = (jnp.asarray(x, jnp.float32) for x in rng.normal(
      size=(3, 1, 33, 2, 64)
  ))
  q, k = jnp.exp(0.1 * q) / 8, k / jnp.linalg.norm(k, axis=-1, keepdims=True)
  beta = jax.nn.sigmoid(v[..., 0])
  writes = table(rule, v, beta, -0.1 * beta)
  starts = jnp.arange(33)[None] == 20

  def f(interpret, writes):
    return linear_memory.layer(
        q, k, writes, erase=linear_memory.ERASES[rule], starts=starts,
        implementation='pallas_tpu' if interpret else 'xla',
        interpret=interpret,
    )

  for a, b in zip(f(True, writes), f(False, writes)):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
