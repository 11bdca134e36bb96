"""One chunk of delta gradient descent on a memory, layer by layer.

DGD is defined for a matrix (NL Eq. 57): decay along the layer's input, then the
gradient step. For an MLP memory it is applied to each layer with that layer's
own input (nested_learning.md §4.5). Not specified by the paper: the length of the
hidden input. The output layer uses the unit vector h / |h| both to decay along
and to write with, so that one step of eta = 1 stores its value exactly and no
layer's size drives the other's.
"""

from typing import Literal

import jax.numpy as jnp

from hope_jax.kernels.dgd.chunked import Momentum, Read, chunk_step
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.memory import Memory
from hope_jax.types import Array

Layers = Literal['all', 'input', 'output', 'none']


def unit(x: Array, eps: float = 1e-3) -> Array:
  """x / |x| over the last axis; zero stays zero, with a finite gradient."""
  return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps * eps)


def step(
    memories: dict[str, Memory],
    frozen: dict[str, Memory],
    momentum: dict[str, Memory] | None,
    k: Array,
    targets: dict[str, Array],
    eta: Array,
    log_alpha: Array,
    log_mu: Array | None,
    *,
    q: Array | None = None,
    objective: str,
    layers: Layers,
    precision: str = 'float32',
) -> tuple[dict[str, Memory], dict[str, Memory] | None, Array | None]:
  """Writes one chunk into memories that share keys and rates.

  M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M_c; k_t, v^_t), with
  the gradient at the frozen copy M_c (NL Eq. 88, 90).

  Args:
    memories: name -> memory at the chunk's start, leaves [..., K, V].
    frozen: name -> the copy the gradients are taken at, of the same structure.
    momentum: name -> momentum of the writes, or None.
    k: unit keys, [..., C, K].
    targets: name -> v^, [..., C, V].
    eta: inner learning rates, [..., C].
    log_alpha: log retentions, [..., C].
    log_mu: log momentum gates [..., C], or None.
    q: queries [..., C, K] answered by the state before each token's write; only
      with a single memory. None: nothing is read.
    objective: 'delta' or 'l2', see `memory.write_values`.
    layers: which layers of an MLP DGD decays along their input ('none': plain
      gradient descent; a matrix is its own input and output layer).
    precision: of the products.

  Returns:
    The memories after the chunk, their momentum, and the reads [..., C, V].
  """
  names = list(memories)
  plans = {
      name: memory_lib.write_values(
          frozen[name], k, targets[name], objective=objective,
          precision=precision,
      )
      for name in names
  }
  new = {name: {} for name in names}
  new_momentum = {name: {} for name in names} if momentum is not None else None
  read: Read = 'none' if q is None else 'pre'

  def layer(names, layer_name, query, key, u, erase):
    """One recurrence over the layers of `names`, side by side along V."""
    s = [memories[n][layer_name] for n in names]
    m = None
    if momentum is not None:
      m = [momentum[n][layer_name] for n in names]
      m = Momentum(jnp.concatenate(m, axis=-1), log_mu)
    o, s_new, m_new = chunk_step(
        jnp.concatenate(s, axis=-1), query, key, u, eta, log_alpha,
        read=read, erase=erase, momentum=m, precision=precision,
    )
    start = 0
    for n, x in zip(names, s):
      part = slice(start, start + x.shape[-1])
      new[n][layer_name] = s_new[..., part]
      if new_momentum is not None:
        new_momentum[n][layer_name] = m_new[..., part]
      start += x.shape[-1]
    return o

  # Layers that see the key itself share one triangular system.
  groups = [[n for n in names if 'w' in plans[n]],
            [n for n in names if 'w_in' in plans[n]]]
  o = None
  for group, layer_name in zip(groups, ('w', 'w_in')):
    if group:
      u = jnp.concatenate([plans[n][layer_name][1] for n in group], axis=-1)
      erase = layers in ('all', 'input') or (
          layer_name == 'w' and layers == 'output'
      )
      o = layer(group, layer_name, q, k, u, erase)
  for n in groups[1]:
    hidden, u = plans[n]['w_out']
    query = None if q is None else memory_lib.activation(o)
    erase = layers in ('all', 'output')
    out = layer([n], 'w_out', query, unit(hidden), u, erase)
    o = out if q is not None else o
  if q is not None:
    o = memory_lib.identity(q, o)
  return new, new_momentum, o
