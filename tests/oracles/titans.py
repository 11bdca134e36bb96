"""Self-modifying Titans in float64 NumPy: one token, head and row at a time.

Written from NL Eq. 83-91 and the docstrings; it imports nothing of the package.
Memories are dicts of matrices whose rows are inputs: {'w'} reads z + z w, and
{'w_in', 'w_out'} reads z + GELU(z w_in) / sqrt(F) w_out; the identity path only
where input and output are equally wide.
"""

import math

import numpy as np

MAIN = 'memory'
_erf = np.vectorize(math.erf)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def unit(x, eps=1e-3, short=0.1):
  """x / |x|, with |x|^2 + eps^2 under the root; shorter where |x| < short."""
  share = min(x @ x / short**2, 1)
  return x / np.sqrt(x @ x + eps * eps) * share * (2 - share)


def bound(x):
  return x / np.sqrt(1 + x @ x)


def corner(x):
  """The signs of x, as a vector of length 1."""
  return np.where(x < 0, -1.0, 1.0) / math.sqrt(len(x))


def hard_sigmoid(x):
  return min(max(x / 6 + 0.5, 0.0), 1.0)


def phi(z):
  return 0.5 * z * (1 + _erf(z / math.sqrt(2))) / math.sqrt(len(z))


def phi_gradient(z):
  normal = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
  return (0.5 * (1 + _erf(z / math.sqrt(2))) + z * normal) / math.sqrt(len(z))


def read(memory, x):
  """M(x) of a vector x."""
  if 'w' in memory:
    y = x @ memory['w']
  else:
    y = phi(x @ memory['w_in']) @ memory['w_out']
  return x + y if len(x) == len(y) else y


def write(memory, frozen, momentum, k, target, eta, alpha, mu, *, objective,
          layers):
  """One token's write into one memory; returns the memory and its momentum.

  M_t = M_{t-1} (alpha I - eta x x^T) - eta grad, for each layer with its
  input x. The gradient is that of the frozen copy. The output layer of an MLP
  decays and writes along the unit vector of its hidden input.
  """
  u = target - read(frozen, k) if objective == 'l2' else target
  if 'w' in memory:
    plan = {'w': (k, u, layers in ('all', 'input', 'output'))}
  else:
    z = k @ frozen['w_in']
    back = phi_gradient(z) * (frozen['w_out'] @ u)
    plan = {
        'w_in': (k, back, layers in ('all', 'input')),
        'w_out': (unit(phi(z)), u, layers in ('all', 'output')),
    }
  new, new_momentum = {}, {}
  for name, (x, u, erase) in plan.items():
    w = alpha * memory[name]
    if erase:
      w = w - eta * np.outer(x, x @ memory[name])
    step = eta * np.outer(x, u)
    if momentum is not None:
      step = mu * momentum[name] + (1 - mu) * step
      new_momentum[name] = step
    new[name] = w + step
  return new, (new_momentum if momentum is not None else None)


def layer(params, x, *, chunk, projection_chunk, objective, target, read_at,
          eta_max, eigenvalues, projection_eta, retention, layers, momentum,
          adaptive, starts=None, present=None, plain_heads=0,
          arithmetic='real'):
  """Runs the layer over every row and head.

  Args:
    params: as in the package: 'memories', 'w_q', 'bias_*', 'w_mu'.
    x: (q, k, v), [B, T, H, K] each.
    chunk: tokens between two copies of the main memory into its frozen form.
    projection_chunk: the same for the others.
    objective: 'delta' or 'l2'.
    target: 'bounded', 'raw' or 'value' (v itself, for the main memory only).
    read_at: 'causal', 'after' or 'boundary'.
    eta_max: largest eta, as a share of alpha, or of 1 + alpha if signed.
    eigenvalues: 'positive' or 'signed'.
    projection_eta: share of eta of the memories but the main one.
    retention: False: alpha = 1.
    layers: 'all', 'input', 'output' or 'none'.
    momentum: whether writes have momentum.
    adaptive: names of the memories that are written besides the main one.
    starts: [B, T] bool, document starts.
    present: [B, T] bool, false at padding.
    plain_heads: the last heads, whose memories never decay along a key; their
      eta is at most eta_max even if signed.
    arithmetic: 'integer': k, q and targets are corners, eta and alpha (a hard
      sigmoid) the nearest whole numbers, and outputs o / (1 + |o|).

  Returns:
    Outputs [B, T, H, K]; memories, frozen copies and momentum after the last
    token, name -> layer -> [B, H, ., .]; tokens into the longer chunk, [B].
  """
  xq, xk, xv = x
  batch, length, heads, _ = xk.shape
  written = (MAIN, *adaptive)
  o = np.zeros(xv.shape)
  phase = np.zeros(batch, int)
  states = {}
  for b in range(batch):
    for h in range(heads):
      initial = {
          n: {layer: w[h] for layer, w in m.items()}
          for n, m in params['memories'].items()
      }
      zero = {
          n: {layer: 0 * w for layer, w in initial[n].items()} for n in written
      }
      memories, frozen, moments = dict(initial), dict(initial), dict(zero)
      position = 0
      for t in range(length):
        if present is not None and not present[b, t]:
          continue
        if starts is not None and starts[b, t]:
          memories, frozen, moments = dict(initial), dict(initial), dict(zero)
          position = 0
        for n in written:
          if position % (chunk if n == MAIN else projection_chunk) == 0:
            frozen[n] = memories[n]
        zq, zk, zv = (unit(s[b, t, h]) for s in (xq, xk, xv))
        whole = arithmetic == 'integer'
        erases = h < heads - plain_heads
        aligned = corner if whole else unit
        k = aligned(read(frozen['k'], zk))
        v = read(frozen['v'], zv)
        if 'q' in adaptive:
          q = aligned(read(frozen['q'], zq))
        else:
          q = aligned(zq @ params['w_q'][h])
        alpha = 1.0
        gates = {
            n: read(frozen[n], zk)[0] + params['bias_' + n][h]
            for n in ('eta', 'alpha')
        }
        if retention:
          alpha = sigmoid(gates['alpha'])
          if whole:
            alpha = round(hard_sigmoid(gates['alpha']))
        if eigenvalues == 'signed':
          most = 1 + alpha if erases else 1
          eta = most * eta_max * hard_sigmoid(gates['eta'])
        else:
          eta = alpha * eta_max * sigmoid(gates['eta'])
        eta = round(eta) if whole else eta
        mu = None
        if momentum:
          mu = sigmoid(zk @ params['w_mu'][h] + params['bias_mu'][h])
        if read_at != 'after':
          source = memories if read_at == 'causal' else frozen
          o[b, t, h] = read(source[MAIN], q)
        new = {}
        for n in written:
          if n == MAIN and target == 'value':
            aim = v
          else:
            aim = read(frozen[n], v)
            aim = aim if target == 'raw' else bound(aim)
          rate = eta if n == MAIN else projection_eta * eta
          aim = corner(aim) if whole else aim
          # Written: at most 1 - |alpha - rate|.
          if eigenvalues == 'signed' and erases:
            aim = aim * min(1.0, (1 + alpha - rate) / rate) if rate else aim
          new[n], m = write(
              memories[n], frozen[n], moments[n] if momentum else None, k, aim,
              rate, alpha, mu, objective=objective,
              layers=layers if erases else 'none',
          )
          if momentum:
            moments[n] = m
        memories = {**memories, **new}
        if read_at == 'after':
          o[b, t, h] = read(memories[MAIN], q)
        if whole:
          o[b, t, h] /= 1 + abs(o[b, t, h])
        position += 1
      phase[b] = position % max(chunk, projection_chunk)
      states[b, h] = (memories, frozen, moments)

  def stack(index, names):
    return {
        n: {
            layer: np.stack([
                np.stack([states[b, h][index][n][layer] for h in range(heads)])
                for b in range(batch)
            ])
            for layer in params['memories'][n]
        }
        for n in names
    }

  state = [stack(i, written) for i in (0, 1, 2)]
  return o, *state, phase
