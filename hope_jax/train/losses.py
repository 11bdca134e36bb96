"""The outer objective: what a step of training minimises.

One form serves text and tasks: each position has a target and a weight, the
mask. Text asks for the next token everywhere; a task (see `tasks.labelling`)
asks where it has answers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hope_jax.types import Array, PyTree

Batch = dict[str, Array]
# (params, batch, rng) -> (sum of nats [] float32, diagnostics by name)
LossFn = Callable[[PyTree, Batch, Array], tuple[Array, dict[str, Array]]]


def token_nats(logits: Array, targets: Array) -> Array:
  """Returns -log softmax(logits)[target], [B, T] float32.

  Args:
    logits: [B, T, E], any float dtype.
    targets: int32 [B, T], in [0, E).
  """
  # float32 before the softmax: in bf16 the log of a sum over a vocabulary has
  # two digits.
  logits = logits.astype(jnp.float32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def position_losses(logits: Array, targets: Array) -> Array:
  """Returns how wrong the answer at each position is, [B, T] float32, in nats.

  Args:
    logits: [B, T, E].
    targets: int32 [B, T], the token wanted: softmax over all E. Or float32
      [B, T, S], a set as 0 and 1: a sigmoid for each of the first S entries,
      and their mean. (Bhattamishra et al. 2020 take the square of the sigmoid's
      error; its gradient vanishes where the answer is surely wrong.)
  """
  if targets.ndim == 2:
    return token_nats(logits, targets)
  logits = logits[..., : targets.shape[-1]].astype(jnp.float32)
  losses = optax.sigmoid_binary_cross_entropy(logits, targets)
  return jnp.mean(losses, axis=-1)


def is_correct(logits: Array, targets: Array) -> Array:
  """Returns where the answer is the target, [B, T] bool; arguments as above."""
  if targets.ndim == 2:
    return jnp.argmax(logits, axis=-1) == targets
  chosen = logits[..., : targets.shape[-1]] > 0
  return jnp.all(chosen == (targets > 0.5), axis=-1)


def make_loss_fn(model: Any) -> LossFn:
  """Returns the sum of `position_losses`, each times its mask.

  Args:
    model: `apply({'params': p}, tokens, ...)` returns logits and the state it
      ends in; it is given `segment_ids` and `positions` where a batch has them.
      Collection 'diagnostics' holds stability scalars.
  """

  def loss_fn(params, batch, rng):
    del rng  # a loss may be random; no model of ours is
    (logits, _), extra = model.apply(
        {'params': params}, batch['tokens'], mutable=['diagnostics'],
        **where(batch),
    )
    losses = position_losses(logits, batch['targets'])
    diagnostics = by_name(extra.get('diagnostics', {}))
    return jnp.sum(losses * batch['mask']), diagnostics

  return loss_fn


def where(batch: Batch) -> Batch:
  """What a batch tells a model of its tokens, as keyword arguments."""
  names = 'segment_ids', 'positions'
  return {name: batch[name] for name in names if name in batch}


def by_name(diagnostics: PyTree) -> dict[str, Array]:
  """Joins the scalars of one name of all layers: name -> float32 [...]."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(diagnostics):
    names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    found.setdefault(names[-1], []).append(
        jnp.ravel(jax.lax.stop_gradient(leaf)).astype(jnp.float32)
    )
  return {name: jnp.concatenate(parts) for name, parts in found.items()}
