"""Continuum Memory System: MLPs in a chain, each with its own update frequency.

Two regimes share the forward pass `chain` (NL §7.1, Eq. 70-74). In the outer
one a level is a parameter group of the optimizer with a period in steps
(`optim/`). In the in-context one, below, every sequence has fast weights of its
own: they start from learned initial states and move on the sequence's own task
loss, each level once in its period of tokens. Weights stand still inside a
chunk, so the gradients of its tokens are taken together.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import Array, PyTree


def chain(
    x: Array,
    levels: Sequence[Callable[[Array], Array]],
    weights: Array | None = None,
) -> Array:
  """The forward pass of a CMS block, fastest level first.

      sequential, nested:  y_0 = x, y_l = y_{l-1} + f_l(y_{l-1})   (NL Eq. 70)
      independent:         y = x + sum_l w_l f_l(x)                (NL Eq. 74)

  Args:
    x: residual stream, [..., D].
    levels: what each level adds, fastest first.
    weights: the learned w_l of the independent variant, [levels]; None: of the
      others.

  Returns:
    [..., D].
  """
  if weights is not None:
    added = (w * f(x) for w, f in zip(weights, levels))
    return x + functools.reduce(operator.add, added).astype(x.dtype)
  for f in levels:
    x = x + f(x)
  return x


class Options(NamedTuple):
  """The plain arguments of the in-context regime, fastest level first."""

  periods: tuple[int, ...]  # tokens between two updates of a level
  rates: tuple[float, ...]  # eta of a level
  variant: str
  outer_gradient: str  # 'exact' or 'first_order'
  accumulate: str  # 'mean' or 'sum' of the period's token gradients


class FastState(NamedTuple):
  """Fast weights of sequences, as what was added to the initial states.

  Tuples over levels of pytrees shaped as the level's parameters, with the axes
  of `count` ahead: [B] of a batch, or none. `start` and `start_gradient` belong
  to the nested variant and are () otherwise.
  """

  offset: tuple[PyTree, ...]
  gradient: tuple[PyTree, ...]  # summed since the level's last update
  start: tuple[PyTree, ...]  # where a level restarts, held by the slower level
  start_gradient: tuple[PyTree, ...]  # summed since that level's last update
  count: Array  # int32, tokens read, modulo the slowest period


def fast_state(
    theta: tuple[PyTree, ...], options: Options, batch: tuple[int, ...] = ()
) -> FastState:
  """Fast weights that equal the initial states.

  Args:
    theta: the initial states, or their shapes.
    options: see `Options`.
    batch: (B,) for a batch of sequences, each with fast weights of its own.

  Returns:
    Zeros, as a sum of nothing is.
  """
  zeros = jax.tree.map(lambda x: jnp.zeros((*batch, *x.shape), x.dtype), theta)
  inner = zeros[:-1] if options.variant == 'nested' else ()
  return FastState(zeros, zeros, inner, inner, jnp.zeros(batch, jnp.int32))


def _where(flag, new, old):
  def leaf(a, b):
    due = flag.reshape(*flag.shape, *(1,) * (b.ndim - flag.ndim))
    return jnp.where(due, a, b)

  return jax.tree.map(leaf, new, old)


def _descend(x, gradient, rate, tokens):
  return jax.tree.map(lambda a, g: a - rate / tokens * g, x, gradient)


def update(
    state: FastState,
    gradients: tuple[PyTree, ...],
    *,
    tokens: int,
    options: Options,
) -> FastState:
  """NL Eq. 71: adds a chunk's gradients, and updates the levels that are due.

      theta_l <- theta_l - eta_l sum_{t in period} grad_t     at its boundary

  Nested (Eq. 72): when level l + 1 is due, level l's context ends. The state
  that l restarts from is one of l + 1's parameters; l + 1 moves it, at its own
  rate, by the gradients of the whole context (the first-order gradient of the
  loss after adaptation), and l is reset to it.

  Args:
    state: the fast weights before.
    gradients: for each level the gradient of the summed loss of the chunk with
      respect to the weights it was read with, or to their `offset`.
    tokens: tokens of the chunk; divides every period.
    options: see `Options`; with accumulate='mean' the sum is divided by the
      period.

  Returns:
    The fast weights after the chunk.
  """
  count = state.count + tokens
  add = lambda sums: jax.tree.map(jnp.add, sums, gradients[: len(sums)])
  offset, gradient = list(state.offset), list(add(state.gradient))
  start = list(state.start)
  start_gradient = list(add(state.start_gradient))
  for i, (period, rate) in enumerate(zip(options.periods, options.rates)):
    due = count % period == 0
    share = period if options.accumulate == 'mean' else 1
    zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    moved = _descend(offset[i], gradient[i], rate, share)
    offset[i] = _where(due, moved, offset[i])
    gradient[i] = _where(due, zero(gradient[i]), gradient[i])
    if i > 0 and start:  # this level ends the context of the one before it
      moved = _descend(start[i - 1], start_gradient[i - 1], rate, share)
      start[i - 1] = _where(due, moved, start[i - 1])
      start_gradient[i - 1] = _where(
          due, zero(start_gradient[i - 1]), start_gradient[i - 1]
      )
      offset[i - 1] = _where(due, start[i - 1], offset[i - 1])
      gradient[i - 1] = _where(due, zero(gradient[i - 1]), gradient[i - 1])
  return FastState(
      tuple(offset),
      tuple(gradient),
      tuple(start),
      tuple(start_gradient),
      count % options.periods[-1],
  )


def chunk(
    loss: Callable[..., tuple[Array, PyTree]],
    state: FastState,
    *inputs: PyTree,
    tokens: int,
    options: Options,
) -> tuple[PyTree, FastState]:
  """Reads one chunk with the fast weights, then lets them learn from it.

  Args:
    loss: (offset, *inputs) -> (summed task loss of the chunk, outputs); it adds
      `state.offset` to the initial states. Over a batch it is the sum, in which
      no sequence knows the weights of another.
    state: the fast weights.
    *inputs: handed to `loss`.
    tokens: tokens of the chunk.
    options: 'first_order' holds the updates fixed in the outer gradient, so
      that d theta_fast / d theta is the identity; 'exact' differentiates them.

  Returns:
    The outputs of `loss`, made before the update, and the new fast weights.
  """
  gradients, outputs = jax.grad(loss, has_aux=True)(state.offset, *inputs)
  if options.outer_gradient == 'first_order':
    gradients = jax.lax.stop_gradient(gradients)
  return outputs, update(state, gradients, tokens=tokens, options=options)
