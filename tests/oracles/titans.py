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


def unit(x, short=0.1):
  """x / |x|; shorter where |x| < short."""
  share = min(x @ x / short**2, 1)
  return x / np.sqrt(x @ x + 1e-12) * share * (2 - share)


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


def apply(memory, x):
  """M(x) of a vector x without its identity path."""
  if 'w' not in memory:
    return phi(x @ memory['w_in']) @ memory['w_out']
  y = x @ memory['w']
  return y @ memory['basis'] if 'basis' in memory else y


def read(memory, x):
  """M(x) of a vector x."""
  y = apply(memory, x)
  return x + y if len(x) == len(y) else y


def write(memory, frozen, momentum, k, target, eta, alpha, mu, *, objective,
          layers, plain=False):
  """One token's write into one memory; returns the memory and its momentum.

  M_t = M_{t-1} (alpha I - eta x x^T) - eta grad, for each layer with its
  input x. The gradient is that of the frozen copy. The output layer of an MLP
  decays and writes along the unit vector of its hidden input; without DGD
  (layers 'none') it writes with the hidden input. In a plain head nothing
  decays.
  """
  u = target - read(frozen, k) if objective == 'l2' else target
  if 'w' in memory:
    plan = {'w': (k, u, layers in ('all', 'input', 'output'))}
  else:
    z = k @ frozen['w_in']
    hidden = phi(z) if layers == 'none' else unit(phi(z))
    back = phi_gradient(z) * (frozen['w_out'] @ u)
    plan = {
        'w_in': (k, back, layers in ('all', 'input')),
        'w_out': (hidden, u, layers in ('all', 'output')),
    }
  new, new_momentum = {}, {}
  for name, (x, u, erase) in plan.items():
    w = alpha * memory[name]
    if erase and not plain:
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
          read_residual='full', values='unit', gates=None, arithmetic='real'):
  """Runs the layer over every row and head.

  Args:
    params: as in the package: 'memories', 'bases', 'w_q', 'bias_*', 'w_mu',
      'read_share'.
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
    read_residual: what of the query is added to an answer: 'full', 'none' or
      'learned', params['read_share'].
    values: 'unit', or 'length': as long as they come.
    gates: what is added to the logits 'eta', 'alpha' and 'mu', [B, T, H] each.
    arithmetic: 'integer': k, q and targets are corners, eta and alpha (a hard
      sigmoid) the nearest whole numbers, and outputs o / (1 + |o|).

  Returns:
    Outputs [B, T, H, K]; memories, frozen copies and momentum after the last
    token, name -> layer -> [B, H, ., .]; tokens into the longer chunk, [B].
  """
  xq, xk, xv = x
  share = {'full': np.ones(xk.shape[2]), 'none': np.zeros(xk.shape[2])}
  share['learned'] = params.get('read_share')
  share = share[read_residual]
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
      bases = {n: w[h] for n, w in params.get('bases', {}).items()}
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

        def answer(n, z):
          memory = frozen[n]  # noqa: B023
          basis = bases.get(n)  # noqa: B023
          return read(memory if basis is None else memory | {'basis': basis}, z)

        whole = arithmetic == 'integer'
        erases = h < heads - plain_heads
        aligned = corner if whole else unit
        k = aligned(answer('k', zk))
        v = answer('v', zv)
        if values == 'length':
          v = xv[b, t, h] + np.sqrt(xv[b, t, h] @ xv[b, t, h]) * (v - zv)
        if 'q' in adaptive:
          q = aligned(answer('q', zq))
        else:
          q = aligned(zq @ params['w_q'][h])
        alpha = 1.0
        raw = {
            n: read(frozen[n], zk)[0] + params['bias_' + n][h]
            + (0 if gates is None else getattr(gates, n)[b, t, h])
            for n in ('eta', 'alpha')
        }
        if retention:
          alpha = sigmoid(raw['alpha'])
          if whole:
            alpha = round(hard_sigmoid(raw['alpha']))
        if eigenvalues == 'signed':
          most = 1 + alpha if erases else 1
          eta = most * eta_max * hard_sigmoid(raw['eta'])
        else:
          eta = alpha * eta_max * sigmoid(raw['eta'])
        eta = round(eta) if whole else eta
        mu = None
        if momentum:
          of_input = zk @ params['w_mu'][h]
          if gates is not None:
            of_input = gates.mu[b, t, h]
          mu = sigmoid(of_input + params['bias_mu'][h])
        if read_at != 'after':
          source = memories if read_at == 'causal' else frozen
          o[b, t, h] = share[h] * q + apply(source[MAIN], q)
        new = {}
        for n in written:
          if n == MAIN and target == 'value':
            aim = v
          else:
            aim = answer(n, v if values == 'unit' else unit(v))
            aim = bases[n] @ aim if n in bases else aim
            aim = aim if target == 'raw' else bound(aim)
          rate = eta if n == MAIN else projection_eta * eta
          aim = corner(aim) if whole else aim
          # Written: at most 1 - |alpha - rate|.
          if eigenvalues == 'signed' and erases:
            aim = aim * min(1.0, (1 + alpha - rate) / rate) if rate else aim
          new[n], m = write(
              memories[n], frozen[n], moments[n] if momentum else None, k, aim,
              rate, alpha, mu, objective=objective, layers=layers,
              plain=not erases,
          )
          if momentum:
            moments[n] = m
        memories = {**memories, **new}
        if read_at == 'after':
          o[b, t, h] = share[h] * q + apply(memories[MAIN], q)
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
