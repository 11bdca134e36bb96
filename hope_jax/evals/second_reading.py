"""The memory at work: what a second reading of a passage costs.

A passage is read, then N tokens of other text, then the passage again, as one
stream. Four losses on the passage say what the memory is worth:

- first: its first reading, from a fresh memory;
- carried: the second reading, with the memory handed through all of it;
- reset: the second reading, with the memory made fresh just before it;
- control: the passage after the same other text, but never read before.

carried against reset is the whole effect of a memory; carried against control
leaves only what is owed to this passage, since the other text, too, tells what
kind of text to expect. reset equals first, unless a fresh start is none.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ModelConfig
from hope_jax.train import losses
from hope_jax.types import Array, PyTree

DISTANCES = (0, 256, 1024)


class Passages(NamedTuple):
  """What to read: P passages, and other text to read between."""

  tokens: np.ndarray  # [P, T] int32
  num_bytes: np.ndarray  # [P] int, bytes of text of each passage
  filler: np.ndarray  # [P, N] int32, from elsewhere
  distances: tuple[int, ...]  # ascending, the last is N


class _Stream(NamedTuple):
  """How far P texts have been read."""

  state: PyTree  # None: nothing has been read
  last: np.ndarray  # [P] int32, the tokens read last, not yet fed to the model


def memory_off(config: ModelConfig) -> ModelConfig:
  """Returns the model with its memories never written and never forgetting.

  The parameters fit as they are: every token reads the learned initial states.
  """
  titans = dataclasses.replace(config.titans, eta_max=0.0, retention=False)
  return dataclasses.replace(config, titans=titans)


def choose(
    ids: np.ndarray,
    num_bytes: np.ndarray,
    *,
    count: int = 16,
    length: int = 256,
    distances: Sequence[int] = DISTANCES,
) -> Passages | None:
  """Takes passages that are spread evenly over a text.

  Each is taken with the text that follows it; that is read between the two
  readings of another passage. Where the text is
  short, there are fewer passages (two at least), then shorter distances.

  Args:
    ids: token ids of a held-out text, [n].
    num_bytes: bytes of text that each stands for, [n].
    count: passages wanted.
    length: tokens of each.
    distances: tokens between the two readings, ascending.

  Returns:
    The passages; None where the text is too short for two.
  """
  distances = [d for d in distances if 2 * (length + d) <= len(ids)]
  if not distances:
    return None
  longest = distances[-1]
  count = min(count, len(ids) // (length + longest))
  starts = np.linspace(0, len(ids) - length - longest, count).astype(int)
  take = lambda array: np.stack(
      [array[s : s + length + longest] for s in starts]
  )
  taken = take(ids).astype(np.int32)
  return Passages(
      taken[:, :length],
      take(num_bytes)[:, :length].sum(1),
      np.roll(taken[:, length:], 1, axis=0),
      tuple(distances),
  )


def second_reading(
    model, params: PyTree, passages: Passages, *, bos: int
) -> dict:
  """Measures the four losses at each distance.

  Args:
    model: the Flax module of the parameters; hashable.
    params: its parameters.
    passages: what to read. A call reads as many tokens as a passage has, so
      that distances that are multiples of it need no other compiled program.
    bos: the token ahead of a text's first.

  Returns:
    Bits per byte: 'first', 'carried', 'reset', 'control', and the paired
    differences 'reset - carried' and 'control - carried'. Each is a list with,
    for each of 'distances', a dict of the 'mean' over the passages and its
    standard 'error'. Also 'passages', their number, and 'passage_bytes', their
    mean length.
  """
  read = functools.partial(_read, model, params, size=passages.tokens.shape[1])
  bits = lambda nats: nats / passages.num_bytes / math.log(2)
  fresh = _Stream(None, np.full(len(passages.tokens), bos, np.int32))
  first, with_passage = read(fresh, passages.tokens)
  without, so_far = fresh, 0
  found = {}
  for distance in passages.distances:
    filler = passages.filler[:, so_far:distance]
    _, with_passage = read(with_passage, filler)
    _, without = read(without, filler)
    so_far = distance
    costs = {
        'first': bits(first),
        'carried': bits(read(with_passage, passages.tokens)[0]),
        'reset': bits(read(fresh, passages.tokens)[0]),
        'control': bits(read(without, passages.tokens)[0]),
    }
    for other in ('reset', 'control'):
      costs[f'{other} - carried'] = costs[other] - costs['carried']
    for name, values in costs.items():
      found.setdefault(name, []).append(_summary(values))
  return found | {
      'distances': list(passages.distances),
      'passages': len(passages.tokens),
      'passage_bytes': float(passages.num_bytes.mean()),
  }


def _read(
    model, params: PyTree, stream: _Stream, tokens: np.ndarray, *, size: int
) -> tuple[np.ndarray, _Stream]:
  """Reads tokens [P, T], `size` a call; returns their nats [P] float64."""
  nats = np.zeros(len(tokens))
  for start in range(0, tokens.shape[1], size):
    targets = tokens[:, start : start + size]
    inputs = np.concatenate([stream.last[:, None], targets[:, :-1]], axis=1)
    some, state = _apply(model, params, inputs, targets, stream.state)
    nats += np.asarray(some, np.float64)
    stream = _Stream(state, targets[:, -1])
  return nats, stream


@functools.partial(jax.jit, static_argnames='model')
def _apply(
    model, params: PyTree, inputs: Array, targets: Array, state: PyTree
) -> tuple[Array, PyTree]:
  logits, state = model.apply({'params': params}, inputs, state=state)
  return jnp.sum(losses.token_nats(logits, targets), axis=1), state


def _summary(values: np.ndarray) -> dict[str, float]:
  error = values.std(ddof=1) / math.sqrt(len(values))
  return {'mean': float(values.mean()), 'error': float(error)}
