"""One training step, as a pure function.

The loss is the mean negative log likelihood over the targets whose mask is 1,
in nats a token. Everything is summed first and divided once by the number of
targets of the whole batch, so that micro-batches with unequal numbers of
targets, or rows on other devices, weigh as they would in one batch.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import optax

from hope_jax import sharding
from hope_jax.train.losses import Batch, LossFn
from hope_jax.train.state import TrainState
from hope_jax.types import Array

Metrics = dict[str, Array]


def _micro_batches(batch: Batch, count: int) -> Batch:
  """Cuts [B, ...] into [count, B / count, ...].

  Micro-batch i takes rows i, i + count, ...: of a batch that is split over
  devices in consecutive rows, every device then holds a share of each.
  """

  def cut(x):
    x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
    return sharding.constrain(x, None, 'batch', *(None,) * (x.ndim - 2))

  return jax.tree.map(cut, batch)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    schedule: optax.Schedule | None = None,
    skip_not_finite: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the step of a run; it is pure, the caller jits it.

  Args:
    loss_fn: see `LossFn`.
    optimizer: the outer optimizer.
    accumulate: micro-batches that a batch is cut into, to save memory; the
      gradient is that of the whole batch.
    schedule: step -> learning rate, only to report it.
    skip_not_finite: a step whose loss, gradient or update is not finite changes
      neither the parameters nor the optimizer's state.

  Returns:
    train_step(state, batch) -> (state, metrics). Metrics, all scalars: loss
    (nats a token), bits_per_byte (where a batch has target_bytes), tokens,
    grad_norm (before clipping), update_norm, param_norm (after the step),
    learning_rate, and each diagnostic's maximum and mean over layers.
  """

  def train_step(state, batch):
    # A batch of padding alone has no loss; it must not have a NaN.
    tokens = jnp.maximum(jnp.sum(batch['mask']), 1)
    rng = jax.random.fold_in(state.rng, state.step)

    def mean_nats(params, micro, rng):
      nats, diagnostics = loss_fn(params, micro, rng)
      return nats / tokens, diagnostics

    gradient = jax.value_and_grad(mean_nats, has_aux=True)
    if accumulate == 1:
      (loss, diagnostics), grads = gradient(state.params, batch, rng)
    else:

      def add(carry, xs):
        """Carry: (loss, gradient) so far. xs: a micro-batch and its number."""
        micro, i = xs
        key = jax.random.fold_in(rng, i)
        (loss, diagnostics), grads = gradient(state.params, micro, key)
        return jax.tree.map(jnp.add, carry, (loss, grads)), diagnostics

      zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), state.params))
      (loss, grads), diagnostics = jax.lax.scan(
          add, zero, (_micro_batches(batch, accumulate), jnp.arange(accumulate))
      )

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {
        'grad_norm': optax.global_norm(grads),
        'update_norm': optax.global_norm(updates),
    }
    if skip_not_finite:
      made = jnp.isfinite(jnp.stack([loss, *norms.values()])).all()
      params, opt_state = jax.tree.map(
          lambda new, old: jnp.where(made, new, old),
          (params, opt_state), (state.params, state.opt_state),
      )
    metrics = {
        'loss': loss,
        'tokens': jnp.sum(batch['mask']),
        **norms,
        'param_norm': optax.global_norm(params),
    }
    if 'target_bytes' in batch:  # labels of a task are no text
      text_bytes = jnp.maximum(jnp.sum(batch['target_bytes']), 1)
      nats = loss * tokens / text_bytes.astype(jnp.float32)
      metrics['bits_per_byte'] = nats / math.log(2)
    if schedule is not None:
      metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
    for name, values in diagnostics.items():
      metrics |= {f'{name}/max': values.max(), f'{name}/mean': values.mean()}
    return TrainState(state.step + 1, params, opt_state, state.rng), metrics

  return train_step
