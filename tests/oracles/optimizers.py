"""NumPy float64 oracles of the optimizers; imports nothing of hope_jax.

Each takes the sequence of gradients of one leaf and returns the sequence of
directions, which the optimizer then multiplies by minus the learning rate.
"""

import numpy as np


def newton_schulz(x, steps=5, eps=1e-8):
  x = np.asarray(x, np.float64)
  if x.ndim > 2:
    return np.stack([newton_schulz(m, steps, eps) for m in x])
  if x.shape[0] > x.shape[1]:
    return newton_schulz(x.T, steps, eps).T
  x = x / (np.linalg.norm(x) + eps)
  for _ in range(steps):
    s = x @ x.T
    x = 3.4445 * x - 4.7750 * (s @ x) + 2.0315 * (s @ (s @ x))
  return x


def delta_momentum(grads, decay, delta, gram, normalize):
  m = np.zeros_like(grads[0])
  out = []
  for g in grads:
    size = np.linalg.norm(g)
    unit = {'soft': g / (1 + size), 'unit': g / size, 'none': g}[normalize]
    if gram == 'matrix':  # the paper's right multiplication, transposed
      m = ((decay * np.eye(len(g)) - delta * unit @ unit.T) @ m) + g
    else:
      row = unit.ravel()
      flat = m.ravel()
      flat = decay * flat - delta * np.outer(row, row) @ flat
      m = flat.reshape(g.shape) + g
    out.append(m)
  return out


def deep_momentum(grads, start, decay, rate, objective, normalize):
  """An MLP by hand-written backpropagation; `start`: A_0, ..., as drawn."""
  rows, columns = grads[0].shape
  first = [np.zeros((rows, columns)), *start]
  if start:
    first.append(np.zeros((start[-1].shape[1], columns)))
  weights = list(first)

  def forward(keys):
    values = [keys]
    for w in weights[1:-1]:
      values.append(np.maximum(w.T @ values[-1], 0))
    return values

  def backward(values, error):
    """Of <m(U), error>, error [out of m, column]: dM, dA, ..., dB and dU."""
    d_linear = values[0] @ error.T
    d_keys = weights[0] @ error
    if len(weights) == 1:
      return [d_linear], d_keys
    found, d = [values[-1] @ error.T], weights[-1] @ error
    for w, y, x in zip(weights[-2:0:-1], values[:0:-1], values[-2::-1]):
      d = d * (y > 0)
      found.insert(0, x @ d.T)
      d = w @ d
    return [d_linear, *found], d_keys + d

  out = []
  for g in grads:
    size = np.linalg.norm(g)
    keys = {'soft': g / (1 + size), 'unit': g / size, 'none': g}[normalize]
    values, one = forward(keys), np.eye(columns)
    error = one
    if objective == 'l2':
      mapped = weights[0].T @ keys
      if start:
        mapped = mapped + weights[-1].T @ values[-1]
      error = one - mapped
    steps, _ = backward(values, error)
    weights = [
        o + decay * (w - o) + rate * d
        for o, w, d in zip(first, weights, steps)
    ]
    out.append(backward(forward(keys), one)[1])
  return out


def preconditioned_momentum(grads, decay, b2=0.999, eps=1e-8):
  m, v = 0.0, 0.0
  out = []
  for t, g in enumerate(grads, 1):
    v = b2 * v + (1 - b2) * g * g
    m = decay * m + g / (np.sqrt(v / (1 - b2**t)) + eps)
    out.append(m)
  return out


def function_momentum(grads, decay, feature=lambda g: g, output=lambda m: m):
  m, out = 0.0, []
  for g in grads:
    m = decay * m + feature(g)
    out.append(output(m))
  return out


def multi_scale_momentum(grads, periods, decays, weights, accumulate):
  """Windows are kept as lists; a level is updated once each is full."""
  memories = [np.zeros_like(grads[0]) for _ in periods]
  updates = [0] * len(periods)
  windows = [[] for _ in periods]
  out = []
  for g in grads:
    total = 0.0
    for i, (p, b, w) in enumerate(zip(periods, decays, weights)):

      def absorb(i=i, b=b):
        if accumulate == 'ema':
          mean = np.mean(windows[i], axis=0)
          memories[i] = b * memories[i] + (1 - b) * mean
        else:
          memories[i] = memories[i] + b * np.sum(windows[i], axis=0)
        windows[i] = []
        updates[i] += 1

      windows[i].append(g)
      if p == 1:
        absorb()
      read = memories[i]
      if accumulate == 'ema' and updates[i]:
        read = read / (1 - b ** updates[i])
      total = total + w * read
      if len(windows[i]) == p:  # seen from the next step on
        absorb()
    out.append(total)
  return out


def muon(grads, beta=0.95, steps=5, eps=1e-8, nesterov=True):
  m, out = 0.0, []
  height, width = grads[0].shape[-2:]
  for t, g in enumerate(grads, 1):
    m = beta * m + (1 - beta) * g
    ahead = m / (1 - beta**t)
    if nesterov:
      ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
    out.append(max(1, width / height) ** 0.5 * newton_schulz(ahead, steps, eps))
  return out


def adamuon(grads, b2=0.95, eps=1e-8, rms=0.2, rms_over='matrix'):
  v, out = 0.0, []
  for t, o in enumerate(muon(grads), 1):
    v = b2 * v + (1 - b2) * o * o
    d = o / (np.sqrt(v / (1 - b2**t)) + eps)
    axes = (-2, -1) if rms_over == 'matrix' else None
    out.append(rms * d / np.sqrt(np.mean(d * d, axis=axes, keepdims=True)))
  return out


def m3(
    grads, b1=0.9, b2=0.999, b3=0.9, slow_weight=0.5, period=10, steps=5,
    eps=1e-8, accumulate='ema', rms=0.2,
):
  m1, m2, v = (np.zeros_like(grads[0]) for _ in range(3))
  o2 = np.zeros_like(m2)
  window, out = [], []
  for t, g in enumerate(grads):
    if t % period == 0:
      if window:
        if accumulate == 'ema':
          m2 = b3 * m2 + (1 - b3) * np.mean(window, axis=0)
        else:
          m2 = m2 + b3 * np.sum(window, axis=0)
      o2 = newton_schulz(m2, steps)
      window = []
    window.append(g)
    if accumulate == 'ema':
      m1 = b1 * m1 + (1 - b1) * g
      v = b2 * v + (1 - b2) * g * g
      v_hat = v / (1 - b2 ** (t + 1))
    else:
      m1, v = m1 + b1 * g, v + b2 * g * g
      v_hat = v
    d = (newton_schulz(m1, steps) + slow_weight * o2) / (np.sqrt(v_hat) + eps)
    if rms is not None:
      d = rms * d / np.sqrt(np.mean(d * d, axis=(-2, -1), keepdims=True))
    out.append(d)
  return out


def dgd_step(w, x, d, eta):
  """argmin 1/2 |x W + d|^2 + 1/(2 eta) |W - W_t|^2, by its normal equations."""
  a = np.outer(x, x) + np.eye(len(x)) / eta
  return np.linalg.solve(a, w / eta - np.outer(x, d))
