"""Causal windowed attention in NumPy, one query at a time."""

import numpy as np


def rotate(x, position, base):
  """Rotary embedding: the pair x_i, x_{i + K/2} turns by p base^{-2i/K}."""
  half = len(x) // 2
  y = x.copy()
  for i in range(half):
    angle = position * base ** (-i / half)
    c, s = np.cos(angle), np.sin(angle)
    y[i] = x[i] * c - x[half + i] * s
    y[half + i] = x[i] * s + x[half + i] * c
  return y


def norm(x, scale):
  return x / np.sqrt(np.mean(x * x) + 1e-6) * (1 + scale)


def attention(x, params, *, heads, window, base, documents):
  """o_t = W_o softmax(q_t k_s / sqrt(K)) v_s over the window and document.

  Args:
    x: [T, D].
    params: 'q', 'k', 'v', 'out' [D, D]; 'norm_q', 'norm_k' [K].
    heads: H.
    window: tokens a query sees, its own included.
    base: of the rotary embedding.
    documents: [T], the document of each token.

  Returns:
    [T, D].
  """
  length, dim = x.shape
  width = dim // heads
  start = {d: documents.index(d) for d in documents}
  o = np.zeros((length, heads, width))
  q, k, v = (
      (x @ params[n]).reshape(length, heads, width) for n in ('q', 'k', 'v')
  )
  for h in range(heads):
    turned = {}
    for n, y in (('q', q), ('k', k)):
      turned[n] = [
          rotate(
              norm(y[t, h], params[f'norm_{n}']), t - start[documents[t]], base
          )
          for t in range(length)
      ]
    for t in range(length):
      seen = [
          s for s in range(max(0, t - window + 1), t + 1)
          if documents[s] == documents[t]
      ]
      scores = np.array([turned['q'][t] @ turned['k'][s] for s in seen])
      weights = np.exp(scores / np.sqrt(width))
      weights /= weights.sum()
      o[t, h] = sum(w * v[s, h] for w, s in zip(weights, seen))
  return o.reshape(length, dim) @ params['out']
