"""How many FLOPs one training step cannot do without.

Matrix products only, a multiply and an add counting two, each product once
forward and twice backward. Not counted, so that the floor stays a floor: what
the backward pass computes again to save memory, norms, gates, activations,
softmax, the inverse of the C x C system, and the optimizer.
"""

import math
from typing import Any

import jax

from hope_jax.config import ModelConfig, architectures
from hope_jax.models.mixers import titans_options
from hope_jax.nested import titans_tile


def recurrence(
    key: int,
    value: int,
    tile: int,
    *,
    read: bool,
    erase: bool,
    momentum: bool,
) -> int:
  """Forward FLOPs of the chunk-parallel recurrence, for one token and head.

  With read and erase, without momentum, and key = value = d: 6 d^2 + 8 C d, as
  K S, Q S and K'E cost 2 d^2 each, and K K', Q K', T R and A E cost 2 C d each.
  Momentum is a second state that is read and written along with the first.

  Args:
    key: K.
    value: V, of all memories that share the key.
    tile: C.
    read: whether queries are answered (Q S, Q K', A E).
    erase: whether DGD decays along keys (K S, K K', T R).
    momentum: whether the write has momentum.

  Returns:
    FLOPs.
  """
  with_states = (1 + momentum) * (1 + read + erase)
  with_keys = read + erase
  with_values = read * (1 + momentum * erase) + erase * (1 + momentum)
  return 2 * (
      key * value * with_states + tile * (key * with_keys + value * with_values)
  )


def memories(config: ModelConfig) -> int:
  """Forward FLOPs of the memories of one layer, for one token and head."""
  options = titans_options(config.titans, 'float32')
  d = config.dim // config.heads
  tile = min(options.chunk, options.projection_chunk)
  main = titans_tile.MAIN
  rank = config.titans.projection_rank
  rank = rank if rank < d else 0
  written = (main, *options.adaptive)
  erases_input = options.layers in ('all', 'input')
  erases_output = options.layers in ('all', 'output')

  def is_low(name):  # the columns that its basis has
    return bool(rank) and name not in (main, *titans_tile.GATES)

  def is_mlp(name):
    return config.titans.memory == 'mlp' and (name == main or not rank)

  def width(name):
    if name in titans_tile.GATES:
      return 1
    return rank if is_low(name) else d

  def hidden(name):
    expansion = config.titans.expansion
    if name != main:
      expansion = config.titans.projection_expansion
    return expansion * d

  def read(name):
    if is_mlp(name):
      return 2 * hidden(name) * (d + width(name))
    return 2 * d * width(name) + 2 * rank * d * is_low(name)

  def gradient(name):
    # What the erasure has not computed already: M(k), and U back through the
    # second layer.
    if not is_mlp(name):
      return read(name) * (options.objective == 'l2' and not erases_input)
    back = forward = 2 * hidden(name) * width(name)
    first = 0 if erases_input else 2 * d * hidden(name)
    second = options.objective == 'l2' and not erases_output
    return back + first + forward * second

  # Keys, values, gates and adaptive queries; then the targets M(v).
  inputs = {'k', 'v', *titans_tile.GATES, *options.adaptive}
  total = sum(read(n) for n in inputs)
  total += sum(
      read(n) + 2 * rank * d * is_low(n)
      for n in written
      if n != main or options.target != 'value'
  )
  total += sum(gradient(n) for n in written)
  # The memories other than the main one share their keys, and so K K'.
  for names, is_read in (
      ([main], options.read != 'boundary'), (options.adaptive, False)
  ):
    if not names:
      continue
    common = {'read': is_read, 'momentum': options.momentum}
    if is_mlp(names[0]):
      first = sum(hidden(n) for n in names)
      total += recurrence(d, first, tile, erase=erases_input, **common)
      total += sum(
          recurrence(hidden(n), width(n), tile, erase=erases_output, **common)
          for n in names
      )
    else:
      value = sum(width(n) for n in names)
      erases = erases_input or erases_output
      total += recurrence(d, value, tile, erase=erases, **common)
  if options.read == 'boundary':
    total += read(main)
  return total


def dense_parameters(params: Any) -> int:
  """Parameters that are one side of a matrix product with every token."""
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    parts = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    if any(part.startswith('conv_') for part in parts):
      continue
    if {'kernel', 'head', 'w_q', 'w_eta', 'w_alpha'} & set(parts):
      total += math.prod(leaf.shape)
  return total


def train_step(config: ModelConfig, params: Any, batch: int, time: int) -> int:
  """FLOPs of forward and backward over a batch.

  Args:
    config: the model.
    params: its parameters; only their shapes matter.
    batch: B.
    time: T.

  Returns:
    FLOPs.
  """
  per_token = 2 * dense_parameters(params)
  if architectures.reads(config.architecture, 'titans.chunk'):
    per_token += config.layers * config.heads * memories(config)
  else:
    # Causal: a query meets half of the keys, in two products.
    seen = min(time, config.attention_window) // 2
    per_token += config.layers * 2 * 2 * seen * config.dim
  return 3 * per_token * batch * time
