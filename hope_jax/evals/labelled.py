"""How many answers are right on a task whose positions carry labels."""

import functools

import jax
import jax.numpy as jnp

from hope_jax import sharding
from hope_jax.tasks.labelling import Arrays, in_order
from hope_jax.train import losses
from hope_jax.types import PyTree


@functools.partial(jax.jit, static_argnames='model')
def _counts(model, params, batch):
  logits, _ = model.apply(
      {'params': params}, batch['tokens'], **losses.where(batch)
  )
  asked = batch['mask'] > 0
  answered = losses.is_correct(logits, batch['targets'])
  return (
      jnp.sum(jnp.any(asked, axis=1) & jnp.all(answered | ~asked, axis=1)),
      jnp.sum(jnp.any(asked, axis=1)),
      jnp.sum(answered & asked),
      jnp.sum(asked),
  )


def evaluate(
    model, params: PyTree, arrays: Arrays, batch_size: int
) -> dict[str, float]:
  """Measures a model on a split of a task.

  Args:
    model: the Flax module of the parameters; hashable.
    params: its parameters.
    arrays: see `tasks.labelling`.
    batch_size: examples at a time.

  Returns:
    exact: share of examples with every answer right; positions: share of right
    answers. Both in [0, 1].
  """
  totals = [0, 0, 0, 0]
  for batch in in_order(arrays, batch_size):
    counts = _counts(model, params, sharding.put_batch(batch))
    totals = [total + int(count) for total, count in zip(totals, counts)]
  exact, examples, positions, answers = totals
  return {'exact': exact / examples, 'positions': positions / answers}
