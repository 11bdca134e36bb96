"""One chunk of delta gradient descent on the memories of a layer.

DGD is defined for a matrix (NL Eq. 57): decay along the layer's input, then the
gradient step. For an MLP memory it is applied to each layer with that layer's
own input (nested_learning.md §4.5). Not specified by the paper: the length of
the hidden input. The output layer uses the unit vector h / |h| both to decay
along and to write with, so that one step of eta = 1 stores its value exactly
and no layer's size drives the other's.

Memories that share their keys share the triangular system of the chunk form, so
a `Bank` keeps their first layers side by side as one wide matrix.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.chunked import chunk_step
from hope_jax.kernels.dgd.decays import decay, flow
from hope_jax.kernels.dgd.products import matmul
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.memory import Memory
from hope_jax.types import Array

Layers = Literal['all', 'input', 'output', 'none']


def unit(x: Array, eps: float = 1e-3) -> Array:
  """x / |x| over the last axis; zero stays zero, and its derivative is zero.

  It is x / sqrt(|x|^2 + eps^2) elsewhere, with a derivative of 1 / eps near
  zero. Three in a row (of a stream, its key and a hidden vector) would make the
  first key of a document, zero where keys are made of the tokens before, all of
  a training step; and nothing is written at a zero key.
  """
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return jnp.where(square > 0, x / jnp.sqrt(square + eps * eps), 0)


class Bank(NamedTuple):
  """Memories that are written with the same keys."""

  first: Array  # [..., K, W]: the first layers side by side
  # Output layers of MLPs, those of one shape as one batch: 'name' of the first
  # memory -> [..., F, V]; 'name+name' of the others -> [..., N, F, V].
  second: dict[str, Array]


class Columns(NamedTuple):
  """Which columns of `Bank.first` belong to which memory, in order."""

  names: tuple[str, ...]
  widths: tuple[int, ...]

  def split(self, x: Array) -> dict[str, Array]:
    """name -> its columns of x [..., W]."""
    parts, start = {}, 0
    for name, width in zip(self.names, self.widths):
      parts[name] = x[..., start : start + width]
      start += width
    return parts


def pack(
    memories: dict[str, Memory], names: tuple[str, ...]
) -> tuple[Bank, Columns]:
  """Puts memories into a bank, in this order; `unpack` takes them out again."""
  firsts = [memories[n][memory_lib.first_layer(memories[n])] for n in names]
  stacks = {}
  for name in names[1:]:
    if 'w_out' in memories[name]:
      stacks.setdefault(memories[name]['w_out'].shape, []).append(name)
  second = {
      '+'.join(stack): jnp.stack([memories[n]['w_out'] for n in stack], axis=-3)
      for stack in stacks.values()
  }
  if 'w_out' in memories[names[0]]:
    second[names[0]] = memories[names[0]]['w_out']
  columns = Columns(names, tuple(x.shape[-1] for x in firsts))
  return Bank(jnp.concatenate(firsts, axis=-1), second), columns


def unpack(bank: Bank, columns: Columns) -> dict[str, Memory]:
  """The memories of a bank, by name."""
  second = {}
  for key, stack in bank.second.items():
    names = key.split('+')
    if key == columns.names[0]:
      second[key] = stack
    else:
      second.update({n: stack[..., i, :, :] for i, n in enumerate(names)})
  memories = {}
  for name, first in columns.split(bank.first).items():
    if name in second:
      memories[name] = {'w_in': first, 'w_out': second[name]}
    else:
      memories[name] = {'w': first}
  return memories


def step(
    bank: Bank,
    frozen: Bank,
    momentum: Bank | None,
    k: Array,
    targets: dict[str, Array],
    eta: Array,
    log_alpha: Array,
    log_mu: Array | None,
    present: Array,
    *,
    columns: Columns,
    shares: dict[str, float],
    q: Array | None = None,
    read: Literal['pre', 'post'] = 'pre',
    objective: str,
    layers: Layers,
    heads: Array | None = None,
    precision: str = 'float32',
) -> tuple[Bank, Bank | None, Array | None]:
  """Writes one chunk into every memory of a bank.

  M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M_c; k_t, v^_t),
  with the gradient at the frozen copy M_c (NL Eq. 88, 90).

  Args:
    bank: the memories at the chunk's start, leaves [..., ., .].
    frozen: the copy the gradients are taken at.
    momentum: momentum of the writes, or None.
    k: unit keys, [..., C, K].
    targets: name -> v^, [..., C, V].
    eta: inner learning rates, [..., C].
    log_alpha: log retentions, [..., C].
    log_mu: log momentum gates [..., C], or None.
    present: [..., C], 1; or 0 where there is no token, and then eta, log_alpha
      and log_mu are 0.
    columns: the memories of the bank.
    shares: name -> the memory's rate as a share of eta; one share for all but
      the first.
    q: queries [..., C, K] to the bank's first memory; None: nothing is read.
    read: whether its state before ('pre') or after ('post') the token's own
      write answers.
    objective: 'delta' or 'l2', see `memory.write_values`.
    layers: which layers of an MLP DGD decays along their input ('none': plain
      gradient descent; a matrix is its own input and output layer).
    heads: [..., 1, 1], 1 where they decay so and 0 at heads that take plain
      steps; None: all decay.
    precision: of the products.

  Returns:
    The bank after the chunk, its momentum, and the reads [..., C, V].
  """
  copies = unpack(frozen, columns)
  z = {name: None for name in columns.names}
  if frozen.second or objective == 'l2':
    z = columns.split(matmul(k, frozen.first, precision))
  plans = {
      name: memory_lib.write_values(
          copies[name], k, targets[name], objective=objective,
          precision=precision, z=z[name],
      )
      for name in columns.names
  }
  # What decays alike is worked out once; a stack of memories has an axis more.
  kept = decay(log_alpha, precision)
  flowing = None
  if momentum is not None:
    flowing = flow(kept, log_mu, present, precision)
  rates = eta, kept, flowing
  stacked = eta[..., None, :], *jax.tree.map(
      lambda x: x[..., None, :, :], (kept, flowing)
  )

  def write(state, velocity, query, key, u, erase, groups):
    alone = state.ndim == eta.ndim + 1
    rate, left, inflow = rates if alone else stacked
    if erase and heads is not None:
      erase = heads if alone else heads[..., None, :, :]
    return chunk_step(
        state, query, key, u, rate, left,
        read='none' if query is None else read, erase=erase,
        momentum=None if velocity is None else (velocity, inflow),
        groups=groups, precision=precision,
    )

  u = [plans[n][memory_lib.first_layer(copies[n])][1] for n in columns.names]
  groups = tuple((w, shares[n]) for n, w in zip(columns.names, columns.widths))
  decays = ('all', 'input') if frozen.second else ('all', 'input', 'output')
  o, first, first_momentum = write(
      bank.first, None if momentum is None else momentum.first, q, k,
      jnp.concatenate(u, axis=-1), layers in decays, _merge(groups),
  )
  second, second_momentum = {}, {}
  for key, state in bank.second.items():
    names = key.split('+')
    hidden, u = zip(*(plans[n]['w_out'] for n in names))
    if key == columns.names[0]:
      query = None if q is None else memory_lib.activation(o)
      hidden, u = hidden[0], u[0]
    else:
      query = None
      hidden, u = jnp.stack(hidden, axis=-3), jnp.stack(u, axis=-3)
    answer, second[key], second_momentum[key] = write(
        state, None if momentum is None else momentum.second[key], query,
        unit(hidden), u, layers in ('all', 'output'),
        ((u.shape[-1], shares[names[0]]),),
    )
    o = o if query is None else answer
  if q is not None:
    o = memory_lib.identity(q, o)
  new_momentum = None
  if momentum is not None:
    new_momentum = Bank(first_momentum, second_momentum)
  return Bank(first, second), new_momentum, o


def _merge(groups: tuple[tuple[int, float], ...]):
  """Joins neighbours of equal share behind the first, which alone is read."""
  merged = [groups[0]]
  for width, share in groups[1:]:
    if len(merged) > 1 and merged[-1][1] == share:
      merged[-1] = (merged[-1][0] + width, share)
    else:
      merged.append((width, share))
  return tuple(merged)
