"""The loss of tasks whose positions carry labels (see `tasks.labelling`)."""

from typing import Any

import jax.numpy as jnp
import optax

from hope_jax.train.step import LossFn, by_name, token_nats
from hope_jax.types import Array


def position_losses(logits: Array, targets: Array) -> Array:
  """Returns how wrong the answer at each position is, [B, T] float32, in nats.

  Args:
    logits: [B, T, E].
    targets: int32 [B, T], the right token: softmax over all E. Or float32
      [B, T, S], a set as 0 and 1: a sigmoid for each of the first S entries,
      and their mean. (Bhattamishra et al. 2020 take the square of the sigmoid's
      error; its gradient vanishes where the answer is surely wrong.)
  """
  if targets.ndim == 2:
    return token_nats(logits, targets)
  logits = logits[..., : targets.shape[-1]].astype(jnp.float32)
  losses = optax.sigmoid_binary_cross_entropy(logits, targets)
  return jnp.mean(losses, axis=-1)


def right(logits: Array, targets: Array) -> Array:
  """Returns where the answer is right, [B, T] bool; arguments as above."""
  if targets.ndim == 2:
    return jnp.argmax(logits, axis=-1) == targets
  chosen = logits[..., : targets.shape[-1]] > 0
  return jnp.all(chosen == (targets > 0.5), axis=-1)


def make_loss_fn(model: Any) -> LossFn:
  """Returns the sum of `position_losses` where the mask is 1.

  Args:
    model: as of `step.make_loss_fn`.
  """

  def loss_fn(params, batch, rng):
    (logits, _), extra = model.apply(
        {'params': params}, batch['tokens'],
        segment_ids=batch.get('segment_ids'), places=batch.get('places'),
        rngs={'dropout': rng}, mutable=['diagnostics'],
    )
    losses = position_losses(logits, batch['targets'])
    diagnostics = by_name(extra.get('diagnostics', {}))
    return jnp.sum(losses * batch['mask']), diagnostics

  return loss_fn
