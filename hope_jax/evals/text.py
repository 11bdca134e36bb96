"""How well a model predicts held-out text, in bits a byte."""

from collections.abc import Iterable
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import sharding
from hope_jax.config import ConfigError
from hope_jax.models.packing import require_room_for
from hope_jax.train import losses
from hope_jax.types import PyTree


@functools.partial(jax.jit, static_argnames='model')
def _sums(model, params, batch):
  logits, _ = model.apply(
      {'params': params}, batch['tokens'], segment_ids=batch['segment_ids']
  )
  nats = losses.token_nats(logits, batch['targets']) * batch['mask']
  sums = nats, batch['mask'], batch['target_bytes']
  return tuple(jnp.sum(x) for x in sums)


def evaluate(
    model, params: PyTree, batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
  """Measures a model on text. Every document starts with a fresh memory.

  Args:
    model: the Flax module of the parameters; hashable.
    params: its parameters.
    batches: batches as of `data.pipeline.heldout_batches`, all of one shape.

  Returns:
    loss (nats a token), bits_per_byte, tokens and bytes.

  Raises:
    ConfigError: the batches hold no target, or a row that the model cannot
      take, see `models.packing.require_room`.
  """
  nats, tokens, text_bytes = 0.0, 0.0, 0
  for batch in batches:
    require_room_for(model, batch)
    some, count, size = _sums(model, params, sharding.put_batch(batch))
    # float32 adds up one batch, the float64 of Python all of them.
    nats += float(some)
    tokens += float(count)
    text_bytes += int(size)
  if not tokens or not text_bytes:
    raise ConfigError('nothing to evaluate: the held-out text is empty')
  return {
      'loss': nats / tokens,
      'bits_per_byte': nats / text_bytes / math.log(2),
      'tokens': tokens,
      'bytes': float(text_bytes),
  }
