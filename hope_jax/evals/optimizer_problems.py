"""What the optimizers are compared on: a landscape, images, text."""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax import sharding
from hope_jax.config import StudyConfig
from hope_jax.data import images, pipeline
from hope_jax.evals import language
from hope_jax.models.factory import language_model
from hope_jax.models.vit import Vit
from hope_jax.train import losses
from hope_jax.types import Array, PyTree

# The landscape of Eq. 53 and its start; the paper gives only the start.
STIFFNESS, WAVE, FREQUENCY, START = 8.0, 0.6, 6.0, (-3.5, 2.0)


class Problem(NamedTuple):
  """What is trained."""

  init: Callable[[int], PyTree]  # seed -> parameters
  batches: Callable[[int], Iterable[PyTree]]  # seed -> one for each step
  # (parameters, batch, dot_general of the layers or None) -> mean loss
  loss: Callable[[PyTree, PyTree, Callable | None], Array]
  evaluate: Callable[[PyTree], dict[str, float]]  # held out; 'loss' and others
  # What to keep of the parameters of every step; nothing, where they are many.
  trace: Callable[[PyTree], list[float]] | None = None


def landscape(r: Array, theta: Array) -> Array:
  """psi = r^2 + k (r - theta + a sin(w r))^2, a winding valley (NL Eq. 53)."""
  return r**2 + STIFFNESS * (r - theta + WAVE * jnp.sin(FREQUENCY * r)) ** 2


def problem_of(config: StudyConfig) -> Problem:
  """Returns the problem that a configuration names."""
  make = {'landscape': _landscape, 'images': _images, 'text': _text}
  return make[config.task](config)


def _landscape(config: StudyConfig) -> Problem:
  """Two numbers, as a matrix [1, 2], so that every rule takes them."""

  def init(seed):
    start = jnp.array([START])
    if seed:  # 0 is the paper's own start
      start = start + 0.1 * jax.random.normal(jax.random.key(seed), (1, 2))
    return {'w': start}

  value = lambda params, *_: landscape(*params['w'][0])
  return Problem(
      init,
      lambda seed: itertools.repeat(None, config.steps),
      value,
      lambda params: {'loss': float(value(params))},
      lambda params: np.asarray(params['w'][0]).tolist(),
  )


def _images(config: StudyConfig) -> Problem:
  model = Vit(config.vit, config.images.classes)
  shape = (1, config.images.image_size, config.images.image_size)
  blank = jnp.zeros((*shape, config.images.channels))

  def nats(params, batch, dot_general=None):
    logits = model.clone(dot_general=dot_general).apply(
        {'params': params}, batch['images']
    )
    hit = jnp.argmax(logits, axis=-1) == batch['labels']
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['labels']
    ), hit

  @functools.cache
  def batches(seed):
    stream = images.train_batches(config.images, seed)
    return list(itertools.islice(stream, config.steps))

  score = jax.jit(nats)
  heldout = list(images.heldout_batches(config.images, config.eval_batches))

  def evaluate(params):
    results = [score(params, batch) for batch in heldout]
    loss, hit = (np.concatenate(part) for part in zip(*results))
    return {'loss': float(loss.mean()), 'accuracy': float(hit.mean())}

  return Problem(
      lambda seed: sharding.unbox(
          model.init(jax.random.key(seed), blank)['params']
      ),
      batches,
      lambda *args: jnp.mean(nats(*args)[0]),
      evaluate,
  )


def _text(config: StudyConfig) -> Problem:
  model = language_model(config.model)
  blank = jnp.zeros((1, config.data.sequence_length), jnp.int32)

  @functools.cache
  def batches(seed):
    data = dataclasses.replace(config.data, seed=seed)
    return list(itertools.islice(pipeline.train_batches(data), config.steps))

  def loss(params, batch, dot_general=None):
    loss_fn = losses.make_loss_fn(model.clone(dot_general=dot_general))
    nats, _ = loss_fn(params, batch, jax.random.key(0))
    return nats / jnp.maximum(jnp.sum(batch['mask']), 1)

  heldout = list(pipeline.heldout_batches(config.data, config.eval_batches))

  def evaluate(params):
    found = language.evaluate(model, params, heldout)
    return {name: found[name] for name in ('loss', 'bits_per_byte')}

  return Problem(
      lambda seed: sharding.unbox(
          model.init(jax.random.key(seed), blank)['params']
      ),
      batches,
      loss,
      evaluate,
  )
