"""How many answers are right on a task whose positions carry labels."""

from collections.abc import Callable
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import sharding
from hope_jax.infer import generate as generate_lib
from hope_jax.tasks.labelling import Arrays, in_order
from hope_jax.train import losses
from hope_jax.types import PyTree


@functools.partial(jax.jit, static_argnames=('model', 'parts'))
def _counts(model, params, batch, parts):
  """Sums over a batch; parts: the most that an answer has."""
  logits, _ = model.apply(
      {'params': params}, batch['tokens'], **losses.where(batch)
  )
  asked = batch['mask'] > 0
  answered = losses.is_correct(logits, batch['targets'])
  counts = {
      'exact': jnp.sum(
          jnp.any(asked, axis=1) & jnp.all(answered | ~asked, axis=1)
      ),
      'examples': jnp.sum(jnp.any(asked, axis=1)),
      'positions': jnp.sum(answered & asked),
      'answers': jnp.sum(asked),
  }
  if parts > 1:
    of_part = batch['parts'][..., None] == 1 + jnp.arange(parts)  # [B, A, P]
    there = jnp.any(of_part, axis=1)
    right = there & jnp.all(answered[..., None] | ~of_part, axis=1)
    share = jnp.sum(right, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
    counts['parts'] = jnp.sum(share)
  return counts


def evaluate(
    model, params: PyTree, arrays: Arrays, batch_size: int
) -> dict[str, float]:
  """Measures a model on a split of a task.

  The model reads the right answer up to each position of it, whatever it would
  have said itself.

  Args:
    model: the Flax module of the parameters; hashable.
    params: its parameters.
    arrays: see `tasks.labelling`.
    batch_size: examples at a time.

  Returns:
    exact: share of examples with every answer right; positions: share of right
    answers; where answers have several parts, parts: the mean over examples of
    the share of them that are right at each position. All in [0, 1].
  """
  parts = int(np.max(arrays.get('parts', 1)))
  totals = {}
  for batch in in_order(arrays, batch_size):
    counts = _counts(model, params, sharding.put_batch(batch), parts)
    for name, count in counts.items():
      totals[name] = totals.get(name, 0) + count.item()
  found = {
      'exact': totals['exact'] / totals['examples'],
      'positions': totals['positions'] / totals['answers'],
  }
  if parts > 1:
    found['parts'] = totals['parts'] / totals['examples']
  return found


def generated(
    model,
    params: PyTree,
    arrays: Arrays,
    decode: Callable[[np.ndarray], bytes],
) -> float:
  """Lets a model write its answers, and looks for the right ones in them.

  After RULER (arXiv 2404.06654): an example's score is the share of its values
  that are in what was written, in whatever order, upper and lower case alike.
  The likeliest token each time, as many of them as the right answer has.

  Args:
    model: the Flax module of the parameters; hashable.
    params: its parameters.
    arrays: with tokens [N, T] whose answer is one run, its `parts` numbered
      from 1; see `tasks.labelling`.
    decode: token ids -> text.

  Returns:
    The mean over examples, in [0, 1].
  """
  shares = []
  for tokens, targets, mask, parts in zip(
      *(arrays[name] for name in ('tokens', 'targets', 'mask', 'parts'))
  ):
    asked = np.flatnonzero(mask)
    written = generate_lib.generate(
        model, params, tokens[None, : asked[0] + 1], max_tokens=len(asked),
        temperature=0.0, rng=jax.random.key(0),
    ).tokens
    text = decode(np.asarray(written[0])).lower()
    values = [
        decode(targets[parts == part]).strip(b' ,.').lower()
        for part in range(1, parts.max() + 1)
    ]
    shares.append(statistics.fmean(value in text for value in values))
  return statistics.fmean(shares)
