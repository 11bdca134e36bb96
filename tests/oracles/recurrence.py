"""The DGD recurrence and its adjoint in float64 NumPy, one token at a time.

Written from the equations, with loops over rows, heads and tokens; it imports
nothing of the package. S is the transpose of the paper's M, [K, V].
"""

import numpy as np


def recurrence(
    q, k, u, eta, log_alpha, state, *, read, tile=1, segment_ids=None,
    reset=None, erase=True,
):
  """S_t = alpha_t S_{t-1} + k_t e_t^T with e_t = eta_t (u_t - S_{t-1}^T k_t).

  'pre' reads S_{t-1}, 'post' S_t, 'chunk' the state at the last multiple of
  `tile`, counted from the start of the segment. A segment starts from `reset`,
  or `state` where there is none. Without `erase` e_t = eta_t u_t.
  """
  o = np.zeros(u.shape)
  final = np.zeros(state.shape)
  for b in range(k.shape[0]):
    for h in range(k.shape[2]):
      tape = _forward(
          q, k, u, eta, log_alpha, state, segment_ids, tile, b, h, reset, erase
      )
      for t, (before, after, chunk, _, _) in enumerate(tape):
        seen = {'pre': before, 'post': after, 'chunk': chunk}[read]
        o[b, t, h] = q[b, t, h] @ seen
      final[b, h] = tape[-1][1]
  return o, final


def _forward(
    q, k, u, eta, log_alpha, state, segment_ids, tile, b, h, reset, erase
):
  """For each token: S before, S after, S_c, starts segment, opens chunk."""
  tape = []
  s, chunk, position = state[b, h], state[b, h], 0
  for t in range(k.shape[1]):
    starts = (
        segment_ids is not None
        and t > 0
        and segment_ids[b, t] != segment_ids[b, t - 1]
    )
    if starts:
      s, position = (state if reset is None else reset)[b, h], 0
    opens = position % tile == 0
    if opens:
      chunk = s
    e = eta[b, t, h] * (u[b, t, h] - erase * (k[b, t, h] @ s))
    after = np.exp(log_alpha[b, t, h]) * s + np.outer(k[b, t, h], e)
    tape.append((s, after, chunk, starts, opens))
    s, position = after, position + 1
  return tape


def recurrence_gradient(
    q, k, u, eta, log_alpha, state, do, dfinal, *, read, tile=1,
    segment_ids=None, reset=None, erase=True,
):
  """Gradients of sum(o * do) + sum(final * dfinal), by the adjoint.

  Of q, k, u, eta, log alpha and state; and of `reset`, where it is given.
  """
  dq, dk, du = np.zeros(q.shape), np.zeros(k.shape), np.zeros(u.shape)
  deta, dla = np.zeros(eta.shape), np.zeros(log_alpha.shape)
  dstate = np.zeros(state.shape)
  dreset = dstate if reset is None else np.zeros(state.shape)
  for b in range(k.shape[0]):
    for h in range(k.shape[2]):
      tape = _forward(
          q, k, u, eta, log_alpha, state, segment_ids, tile, b, h, reset, erase
      )
      ds = dfinal[b, h].copy()
      dchunk = np.zeros_like(ds)
      for t in reversed(range(k.shape[1])):
        before, after, chunk, starts, opens = tape[t]
        at = b, t, h
        read_gradient = np.outer(q[at], do[at])
        seen = {'pre': before, 'post': after, 'chunk': chunk}[read]
        dq[at] = seen @ do[at]
        if read == 'post':
          ds = ds + read_gradient
        elif read == 'chunk':
          dchunk = dchunk + read_gradient
        # S = alpha before + k e^T, e = eta (u - erase before^T k)
        alpha, rate = np.exp(log_alpha[at]), eta[at]
        error = u[at] - erase * (k[at] @ before)
        de = k[at] @ ds
        dla[at] = alpha * np.sum(ds * before)
        deta[at] = de @ error
        du[at] = rate * de
        dk[at] = ds @ (rate * error) - erase * rate * before @ de
        ds = alpha * ds - erase * rate * np.outer(k[at], de)
        if read == 'pre':
          ds = ds + read_gradient
        if opens:
          ds, dchunk = ds + dchunk, np.zeros_like(ds)
        if starts:
          dreset[b, h] += ds
          ds = np.zeros_like(ds)
      dstate[b, h] += ds
  gradients = dq, dk, du, deta, dla, dstate
  return gradients if reset is None else (*gradients, dreset)


def momentum_recurrence(
    q, k, u, eta, log_alpha, log_mu, state, momentum, *, read, erase
):
  """One chunk [C, .] with momentum on the write, without batch or heads.

      P_t = mu_t P_{t-1} + (1 - mu_t) eta_t k_t u_t^T
      S_t = (alpha_t I - eta_t k_t k_t^T) S_{t-1} + P_t      (with erase)
  """
  start, s, p = state, state, momentum
  o = np.zeros(u.shape)
  for t in range(k.shape[0]):
    mu = np.exp(log_mu[t])
    p = mu * p + (1 - mu) * eta[t] * np.outer(k[t], u[t])
    decay = np.exp(log_alpha[t]) * np.eye(k.shape[1])
    if erase:
      decay = decay - eta[t] * np.outer(k[t], k[t])
    after = decay @ s + p
    o[t] = q[t] @ {'pre': s, 'post': after, 'chunk': start}[read]
    s = after
  return o, s, p
