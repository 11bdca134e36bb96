"""Fast weights of a Continuum Memory System, in NumPy, straight from Eq. 70-74.

Levels f_l(x) = tanh(x a_l) b_l, fastest first; the loss of the task is
1/2 sum |y - target|^2. Gradients are written out by hand. Nothing of hope_jax
is imported.
"""

import copy

import numpy as np


def forward_backward(levels, weights, x, target, variant):
  """Outputs [T, D] and the gradient of the summed loss for each level."""
  count = len(levels)
  if variant == 'independent':
    hidden = [np.tanh(x @ level['a']) for level in levels]
    y = x + sum(w * h @ lv['b'] for w, h, lv in zip(weights, hidden, levels))
    error = y - target
    grads = []
    for w, h, level in zip(weights, hidden, levels):
      back = w * (error @ level['b'].T) * (1 - h * h)
      grads.append({'a': x.T @ back, 'b': w * h.T @ error})
    return y, grads
  inputs, hidden = [x], []
  for level in levels:
    h = np.tanh(inputs[-1] @ level['a'])
    hidden.append(h)
    inputs.append(inputs[-1] + h @ level['b'])
  error = inputs[-1] - target
  grads = [None] * count
  for i in reversed(range(count)):
    back = (error @ levels[i]['b'].T) * (1 - hidden[i] ** 2)
    grads[i] = {'a': inputs[i].T @ back, 'b': hidden[i].T @ error}
    error = error + back @ levels[i]['a'].T
  return inputs[-1], grads


def run(theta, weights, x, target, *, periods, rates, variant, accumulate):
  """Reads x [T, D] token chunk by token chunk; T a multiple of periods[0].

  Returns outputs [T, D], the final weights, and how often each level moved.
  """
  count = len(theta)
  chunk = periods[0]
  now = copy.deepcopy(theta)
  restart = copy.deepcopy(theta)  # nested: where level l restarts
  window = [[] for _ in range(count)]  # gradients since the level's update
  context = [[] for _ in range(count)]  # since the next slower level's update
  moves = [0] * count
  outputs = []

  def descend(level, gradients, i):
    for name in level:
      total = sum(g[name] for g in gradients)
      if accumulate == 'mean':
        total = total / periods[i]
      level[name] = level[name] - rates[i] * total

  for start in range(0, len(x), chunk):
    part = slice(start, start + chunk)
    y, grads = forward_backward(now, weights, x[part], target[part], variant)
    outputs.append(y)
    read = start + chunk
    for i in range(count):
      window[i].append(grads[i])
      context[i].append(grads[i])
    for i in range(count):
      if read % periods[i] == 0:
        descend(now[i], window[i], i)
        window[i] = []
        moves[i] += 1
        if variant == 'nested' and i > 0:
          descend(restart[i - 1], context[i - 1], i)
          context[i - 1] = []
          now[i - 1] = copy.deepcopy(restart[i - 1])
          window[i - 1] = []
  return np.concatenate(outputs), now, moves
