"""One chunk of delta gradient descent on the memories of a layer.

DGD is defined for a matrix (NL §4.5, Eq. 57): decay along the layer's input,
then the gradient step. Not specified by the paper: DGD of an MLP memory. Here
it is applied to each layer with that layer's own input. The output layer uses
the unit vector h / |h| of the hidden input both to decay along and to write
with, so that one step of eta = 1 stores its value exactly and no layer's size
drives the other's. Without DGD (`Rule.layers` 'none') it writes with h itself:
that is gradient descent.

Memories that share their keys share the triangular system of the chunk form, so
a `Bank` keeps their first layers side by side as one wide matrix.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.chunked import chunk_step
from hope_jax.kernels.dgd.decays import Decay, Flow, decay, flow
from hope_jax.kernels.dgd.products import Precision, matmul
from hope_jax.nested import memory as memory_lib
from hope_jax.nested.memory import Matrix, Memory, Mlp, Objective, Write
from hope_jax.types import Array

Layers = Literal['all', 'input', 'output', 'none']


def unit(x: Array, short: float = 0.1) -> Array:
  """x / |x| over the last axis; shorter where |x| < short.

  Not specified by the paper: a vector that is hardly there has no direction to
  speak of. Its length falls to zero as (|x| / short)^2, and so does the
  derivative, which is 1.54 / short at most. As 1 / |x| it would make the first
  key of a document (zero where keys are made of the tokens before, and nearly
  so after a first step) all of a training step's gradient.
  """
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  share = jnp.minimum(square / (short * short), 1)
  return x / jnp.sqrt(square + 1e-12) * (share * (2 - share))


class Bank(NamedTuple):
  """The layers of memories that are written with the same keys."""

  first: Array  # [..., K, W]: the first layers side by side
  # Output layers of MLPs, one array for each of `Members.stacks`: [..., F, V]
  # of the first memory, [..., N, F, V] of the others.
  second: tuple[Array, ...]


class Members(NamedTuple):
  """Which memories a bank holds, and where."""

  names: tuple[str, ...]  # in the order of their columns of `Bank.first`
  widths: tuple[int, ...]  # columns of each
  # Those that have an output layer: the first memory alone, as it alone is
  # read; of the others, those whose output layers have one shape.
  stacks: tuple[tuple[str, ...], ...]

  def split(self, x: Array) -> dict[str, Array]:
    """name -> its columns of x [..., W]."""
    parts, start = {}, 0
    for name, width in zip(self.names, self.widths):
      parts[name] = x[..., start : start + width]
      start += width
    return parts

  @property
  def rest(self) -> 'Members':
    """All but the first, by the columns that follow those of the first."""
    return self._replace(names=self.names[1:], widths=self.widths[1:])

  def is_first(self, stack: tuple[str, ...]) -> bool:
    """Whether this is the first memory, which has no axis N."""
    return stack == self.names[:1]


def pack(
    memories: dict[str, Memory], names: tuple[str, ...]
) -> tuple[Bank, Members]:
  """Puts memories into a bank, in this order; `unpack` takes them out again."""
  firsts = [memories[name].first for name in names]
  by_shape = {}
  for name in names:
    memory = memories[name]
    if isinstance(memory, Mlp):
      key = name == names[0], memory.w_out.shape
      by_shape.setdefault(key, {})[name] = memory.w_out
  members = Members(
      names, tuple(x.shape[-1] for x in firsts),
      tuple(tuple(stack) for stack in by_shape.values()),
  )
  second = tuple(
      stack[names[0]] if alone else jnp.stack([*stack.values()], axis=-3)
      for (alone, _), stack in by_shape.items()
  )
  return Bank(jnp.concatenate(firsts, axis=-1), second), members


def unpack(bank: Bank, members: Members) -> dict[str, Memory]:
  """The memories of a bank, by name."""
  output = {}
  for stack, x in zip(members.stacks, bank.second):
    if members.is_first(stack):
      output[stack[0]] = x
    else:
      output.update({n: x[..., i, :, :] for i, n in enumerate(stack)})
  return {
      name: Mlp(first, output[name]) if name in output else Matrix(first)
      for name, first in members.split(bank.first).items()
  }


class Chunk(NamedTuple):
  """The tokens of a chunk as all memories of a bank are written with them."""

  k: Array  # unit keys, [..., C, K]
  targets: dict[str, Array]  # name -> v^, [..., C, V]
  eta: Array  # inner learning rates, [..., C]
  log_alpha: Array  # log retentions, [..., C]
  log_mu: Array | None  # log momentum gates [..., C]; None: no momentum
  # [..., C], 1; or 0 where there is no token, and then eta, log_alpha and
  # log_mu are 0.
  present: Array
  q: Array | None = None  # queries to the first memory, [..., C, K]; None: none


class Rule(NamedTuple):
  """How a bank is written and read; known when a program is compiled."""

  objective: Objective  # see `memory.write_values`
  # The layers of an MLP that DGD decays along their input ('none': plain
  # gradient descent; a matrix is its own input and output layer).
  layers: Layers
  # The rate of all memories but the first, as a share of eta.
  share: float = 1.0
  # Whether the state before ('pre') or after ('post') the token's own write
  # answers.
  read: Literal['pre', 'post'] = 'pre'
  precision: Precision = 'float32'  # of the products


class _Gates(NamedTuple):
  """What all layers of a bank decay and are written by, worked out once."""

  eta: Array  # [..., C]
  kept: Decay
  flowing: Flow | None  # with momentum
  decaying: Array | None  # as in `step`

  def for_stack(self) -> '_Gates':
    """For a stack of memories, which has an axis more."""
    return _Gates(
        self.eta[..., None, :],
        *jax.tree.map(lambda x: x[..., None, :, :], self[1:]),
    )


def step(
    bank: Bank,
    frozen: Bank,
    momentum: Bank | None,
    chunk: Chunk,
    *,
    members: Members,
    rule: Rule,
    decaying: Array | None = None,
) -> tuple[Bank, Bank | None, Array | None]:
  """Writes one chunk into every memory of a bank.

  M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M_c; k_t, v^_t),
  with the gradient at the frozen copy M_c (NL Eq. 88, 90).

  Args:
    bank: the memories at the chunk's start, leaves [..., ., .].
    frozen: the copy the gradients are taken at.
    momentum: momentum of the writes; None where `chunk` has no gates of it.
    chunk: the tokens.
    members: the memories of the bank.
    rule: how they are written and read.
    decaying: [..., 1, 1], 1 at heads that decay along their inputs and 0 at
      heads that take plain steps; None: all decay.

  Returns:
    The bank after the chunk, its momentum, and what the first memory answers,
    [..., C, V] without the identity path, or None.
  """
  of_first, of_stacks = _writes(frozen, chunk, members, rule)
  kept = decay(chunk.log_alpha, rule.precision)
  flowing = None
  if chunk.log_mu is not None:
    flowing = flow(kept, chunk.log_mu, chunk.present, rule.precision)
  gates = _Gates(chunk.eta, kept, flowing, decaying)
  shares = [1.0] + [rule.share] * (len(members.names) - 1)
  o, first, first_momentum = _write_layer(
      bank.first, None if momentum is None else momentum.first, chunk.q,
      of_first, gates, rule,
      # A matrix is its input and output layer in one.
      erase=rule.layers in ('all', 'input')
      or (rule.layers == 'output' and not bank.second),
      shares=_merge(tuple(zip(members.widths, shares))),
  )
  second, second_momentum = [], []
  stacks = zip(members.stacks, bank.second, of_stacks)
  for i, (stack, state, write) in enumerate(stacks):
    query, of_stack = None, gates
    if not members.is_first(stack):
      of_stack = gates.for_stack()
    elif o is not None:
      query = memory_lib.activation(o)
    answer, new, new_velocity = _write_layer(
        state, None if momentum is None else momentum.second[i], query,
        write if rule.layers == 'none' else write._replace(x=unit(write.x)),
        of_stack, rule,
        erase=rule.layers in ('all', 'output'),
        shares=(
            (write.u.shape[-1], 1.0 if members.is_first(stack) else rule.share),
        ),
    )
    second.append(new)
    if new_velocity is not None:
      second_momentum.append(new_velocity)
    o = o if query is None else answer
  new_momentum = None
  if first_momentum is not None:
    new_momentum = Bank(first_momentum, tuple(second_momentum))
  return Bank(first, tuple(second)), new_momentum, o


def _writes(
    frozen: Bank, chunk: Chunk, members: Members, rule: Rule
) -> tuple[Write, tuple[Write, ...]]:
  """What to write into the first layers, and into each of the stacks."""
  z = {}
  if frozen.second or rule.objective == 'l2':
    z = members.split(matmul(chunk.k, frozen.first, rule.precision))
  firsts: list[Array] = []
  outputs: dict[str, Write] = {}
  for name, copy in unpack(frozen, members).items():
    first, output = memory_lib.write_values(
        copy, chunk.k, chunk.targets[name], objective=rule.objective,
        precision=rule.precision, z=z.get(name),
    )
    firsts.append(first.u)
    if output is not None:
      outputs[name] = output
  stacks = tuple(
      outputs[stack[0]] if members.is_first(stack)
      else jax.tree.map(
          lambda *x: jnp.stack(x, axis=-3), *(outputs[name] for name in stack)
      )
      for stack in members.stacks
  )
  return Write(chunk.k, jnp.concatenate(firsts, axis=-1)), stacks


def _write_layer(
    state: Array,
    velocity: Array | None,
    query: Array | None,
    write: Write,
    gates: _Gates,
    rule: Rule,
    *,
    erase: bool,
    shares: tuple[tuple[int, float], ...],
) -> tuple[Array | None, Array, Array | None]:
  """`chunk_step` of one layer, or of a stack of them."""
  momentum = None
  if velocity is not None and gates.flowing is not None:
    momentum = velocity, gates.flowing
  erases: bool | Array = erase
  if erase and gates.decaying is not None:
    erases = gates.decaying
  return chunk_step(
      state, query, *write, gates.eta, gates.kept, read=rule.read,
      erase=erases, momentum=momentum, shares=shares, precision=rule.precision,
  )


def _merge(shares: tuple[tuple[int, float], ...]):
  """Joins neighbours of equal share behind the first, which alone is read."""
  merged = [shares[0]]
  for width, share in shares[1:]:
    if len(merged) > 1 and merged[-1][1] == share:
      merged[-1] = (merged[-1][0] + width, share)
    else:
      merged.append((width, share))
  return tuple(merged)
