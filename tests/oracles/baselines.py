"""Layers of the baselines as published, in float64 NumPy, token by token.

Written from the papers (arXiv 2006.16236, 2307.08621, 2406.06484, 2412.06464,
2407.04620, 2501.00663) and the defaults of their authors' code; it imports
nothing of the package. Each takes parameters under the package's names, one row
x [T, D] that is one document, and returns what the layer adds, [T, D].
"""

import numpy as np


def sigmoid(x):
  return 0.5 * (1 + np.tanh(0.5 * x))


def silu(x):
  return x * sigmoid(x)


def softplus(x):
  return np.logaddexp(0, x)


def gelu(x):
  """The approximation by tanh, which ttt-lm has."""
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_gradient(x):
  t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
  inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
  return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * inner


def rms_norm(x, scale, eps=1e-6):
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def l2_norm(x):
  return x / np.sqrt(np.sum(x * x) + 1e-6)


def convolve(x, taps):
  """y_t = sum_i taps_i x_{t-i}, zeros before the first token."""
  y = np.zeros(x.shape)
  for t in range(len(x)):
    for i in range(min(t + 1, len(taps))):
      y[t] += taps[i] * x[t - i]
  return y


def project(p, name, x):
  return x @ p[name]['kernel']


def linear_streams(p, x, heads):
  """q, k, v [T, H, .]: projections, and convolutions where there are taps."""
  streams = [project(p, f'project_{n}', x) for n in 'qkv']
  if 'conv' in p:
    start = 0
    for i, y in enumerate(streams):
      taps = p['conv']['kernel'][:, start : start + y.shape[1]]
      streams[i] = silu(convolve(y, taps))
      start += y.shape[1]
  return [y.reshape(len(x), heads, -1) for y in streams]


def linear_attention(p, x, heads):
  """2006.16236, Eq. 9: sum phi(q) phi(k) v / sum phi(q) phi(k)."""
  phi = lambda y: np.where(y > 0, y + 1, np.exp(np.minimum(y, 0)))
  q, k, v = linear_streams(p, x, heads)
  o = np.zeros(v.shape)
  for t in range(len(x)):
    for h in range(heads):
      weights = phi(k[: t + 1, h]) @ phi(q[t, h])
      o[t, h] = weights @ v[: t + 1, h] / (weights.sum() + 1e-6)
  return project(p, 'out', o.reshape(len(x), -1))


def turn(x, position, base, pairs):
  """Rotates the planes of `pairs` [(i, j)] by position times a frequency."""
  y = x.copy()
  for n, (i, j) in enumerate(pairs):
    angle = position * base ** (-n / len(pairs))
    y[..., i] = np.cos(angle) * x[..., i] - np.sin(angle) * x[..., j]
    y[..., j] = np.sin(angle) * x[..., i] + np.cos(angle) * x[..., j]
  return y


def retnet(p, x, heads, base=10_000.0):
  """2307.08621, Eq. 5 and 8, with gamma_h = 1 - 2^(-5-h)."""
  q, k, v = linear_streams(p, x, heads)
  half = q.shape[-1] // 2
  pairs = [(i, half + i) for i in range(half)]
  o = np.zeros(v.shape)
  for t in range(len(x)):
    for h in range(heads):
      gamma = 1 - 2.0 ** (-5 - h)
      for s in range(t + 1):
        score = turn(q[t, h], t, base, pairs) @ turn(k[s, h], s, base, pairs)
        score /= np.sqrt(q.shape[-1])
        o[t, h] += gamma ** (t - s) * score * v[s, h]
  o = rms_norm(o, 1 + p['norm_out']['scale']).reshape(len(x), -1)
  return project(p, 'out', silu(project(p, 'gate', x)) * o)


def deltanet(p, x, heads, signed=False):
  """fla's DeltaNet; with 'a_log' its GatedDeltaNet (2412.06464, Eq. 10)."""
  q, k, v = linear_streams(p, x, heads)
  beta = (1 + signed) * sigmoid(x @ p['w_beta'])
  alpha = np.ones(beta.shape)
  if 'a_log' in p:
    dt = softplus(x @ p['w_alpha'] + p['dt_bias'])
    alpha = np.exp(-np.exp(p['a_log']) * dt)
  o = np.zeros(v.shape)
  for h in range(heads):
    s = np.zeros((v.shape[-1], k.shape[-1]))
    for t in range(len(x)):
      key = l2_norm(k[t, h])
      s = alpha[t, h] * s
      s = s + beta[t, h] * np.outer(v[t, h] - s @ key, key)
      o[t, h] = s @ l2_norm(q[t, h]) / np.sqrt(k.shape[-1])
  o = rms_norm(o, 1 + p['norm_out']['scale']).reshape(len(x), -1)
  if 'gate' in p:
    o = silu(project(p, 'gate', x)) * o
  return project(p, 'out', o)


def layer_norm(x, scale, bias, eps=1e-6):
  """The output, and what its gradient needs."""
  deviation = np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)
  normal = (x - np.mean(x, axis=-1, keepdims=True)) / deviation
  return normal * scale + bias, (normal, deviation)


def layer_norm_gradient(d, scale, saved):
  normal, deviation = saved
  d = d * scale
  d = d - np.mean(d) - normal * np.mean(d * normal)
  return d / deviation


class Mlp:
  """Matrices and biases (or None) of a memory; GELU between layers."""

  def __init__(self, weights, biased):
    self.w = [w[:-1] if biased else w for w in weights]
    self.b = [w[-1] if biased else np.zeros(w.shape[1]) for w in weights]
    self.biased = biased

  def forward(self, x):
    """The inputs and outputs of each layer."""
    inputs, outputs = [], []
    for i, (w, b) in enumerate(zip(self.w, self.b)):
      x = x if i == 0 else gelu(outputs[-1])
      inputs.append(x)
      outputs.append(x @ w + b)
    return inputs, outputs

  def gradient(self, x, d):
    """Of the loss in each w and b, where d is that in the last output of d."""
    inputs, outputs = self.forward(x)
    d = d(outputs[-1])
    found = []
    for i in reversed(range(len(self.w))):
      found.insert(0, (np.outer(inputs[i], d), self.biased * d))
      if i:
        d = (self.w[i] @ d) * gelu_gradient(outputs[i - 1])
    return found

  def plus(self, change, share=1.0, keep=1.0):
    """keep times this, plus share times a change."""
    new = Mlp(self.w, False)
    new.biased = self.biased
    new.w = [keep * w + share * c for w, (c, _) in zip(self.w, change)]
    new.b = [keep * b + share * c for b, (_, c) in zip(self.b, change)]
    return new


def add(a, b, share=1.0, keep=1.0):
  """keep a + share b of two gradients."""
  return [tuple(keep * x + share * y for x, y in zip(*z)) for z in zip(a, b)]


def ttt(p, x, heads, rate, chunk, base=10_000.0):
  """ttt-lm's TTTLinear or TTTMLP, whose heads hold rotated pairs side by side.

  The package has the planes' first halves ahead of the second ones: the same
  layer with the channels of each head in another order, taken here from its
  parameters.
  """
  length, dim = x.shape
  k_dim = dim // heads
  order = np.arange(k_dim).reshape(2, -1).T.reshape(-1)  # 0, K/2, 1, K/2 + 1
  every = (np.arange(heads)[:, None] * k_dim + order).reshape(-1)
  shared = project(p, 'project_qk', x)
  taps, bias = p['conv']['kernel'], p['bias_conv']
  q, k = (
      convolve(shared, taps[:, at : at + dim]) + bias[at : at + dim]
      for at in (0, dim)
  )
  v = project(p, 'project_v', x)
  q, k, v = (y[:, every].reshape(length, heads, k_dim) for y in (q, k, v))
  eta = rate / k_dim * sigmoid(x @ p['w_eta'] + p['bias_eta'])
  tau = np.maximum(1 / np.arange(1, chunk + 1) + p['tau'], 0)
  pairs = [(2 * i, 2 * i + 1) for i in range(k_dim // 2)]
  o = np.zeros(q.shape)
  for h in range(heads):
    scale = 1 + p['norm_scale'][h, 0][order]
    shift = p['norm_bias'][h, 0][order]
    weights = [p[f'memory_{i}'][h] for i in range(2) if f'memory_{i}' in p]
    rows = np.append(order, k_dim)  # the last one is the bias
    weights[0] = weights[0][rows]
    weights[-1] = weights[-1][:, order]
    start = now = Mlp(weights, biased=True)
    total = None
    for t in range(length):
      place = t % chunk
      if place == 0:
        start, total = now, None
      key = turn(k[t, h], place, base, pairs)

      def error(z, key=key, t=t, h=h, scale=scale, shift=shift):
        y, saved = layer_norm(z, scale, shift)
        return layer_norm_gradient(y - (v[t, h] - key), scale, saved)

      found = start.gradient(key, error)
      found = add(found, found, share=eta[t, h], keep=0)
      total = found if total is None else add(total, found)
      now = start.plus(total, share=-tau[place])
      query = turn(q[t, h], place, base, pairs)
      o[t, h] = query + layer_norm(
          now.forward(query)[1][-1], scale, shift
      )[0]
  y = np.zeros((length, dim))
  y[:, every] = o.reshape(length, dim)
  y, _ = layer_norm(y, 1 + p['norm_out_scale'], p['norm_out_bias'])
  return project(p, 'out', gelu(project(p, 'gate', x)) * y)


def titans(p, x, heads, chunk, most):
  """2501.00663, Eq. 8 to 15, gradients at the memory of the chunk's start."""
  length, dim = x.shape
  streams = np.concatenate(
      [project(p, f'project_{n}', x) for n in 'qkv'], axis=1
  )
  streams = silu(convolve(streams, p['conv']['kernel']))
  q, k, v = (
      y.reshape(length, heads, -1) for y in np.split(streams, 3, axis=1)
  )
  gate = lambda n: sigmoid(x @ p[f'w_{n}'] + p[f'bias_{n}'])
  theta, mu, alpha = most * gate('theta'), gate('mu'), gate('alpha')
  o = np.zeros(v.shape)
  for h in range(heads):
    weights = [p[f'memory_{i}'][h] for i in range(2) if f'memory_{i}' in p]
    m = copy = Mlp(weights, biased=False)
    s = [(0 * w, 0 * b) for w, b in zip(m.w, m.b)]
    for t in range(length):
      if t % chunk == 0:
        copy = m
      found = copy.gradient(
          l2_norm(k[t, h]), lambda z, t=t, h=h: z - v[t, h]
      )
      s = add(s, found, share=-theta[t, h], keep=mu[t, h])
      m = m.plus(s, keep=alpha[t, h])
      o[t, h] = m.forward(l2_norm(q[t, h]))[1][-1]
  o = rms_norm(o, 1 + p['norm_out']['scale']).reshape(length, dim)
  return project(p, 'out', silu(project(p, 'gate', x)) * o)
