"""What the optimizers are compared on: a landscape, images, text."""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import sharding
from hope_jax.config import Config, ConfigError, StudyConfig, architectures
from hope_jax.data import images as images_lib
from hope_jax.data import pipeline
from hope_jax.evals import text
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
  # `dot_general` of the layers, or None -> the loss.
  make_loss_fn: Callable[[Callable | None], losses.LossFn]
  evaluate: Callable[[PyTree], dict[str, float]]  # held out; 'loss' and others
  # What to keep of the parameters of every step; nothing, where they are many.
  trace: Callable[[PyTree], list[float]] | None = None


def landscape(r: Array, theta: Array) -> Array:
  """psi = r^2 + k (r - theta + a sin(w r))^2, a winding valley (NL Eq. 53)."""
  return r**2 + STIFFNESS * (r - theta + WAVE * jnp.sin(FREQUENCY * r)) ** 2


def problem_of(column: str, config: Config, study: StudyConfig) -> Problem:
  """Returns the problem of a column.

  Args:
    column: 'landscape', 'text', or a source of images.
    config: steps, held-out batches, and of 'text' the model and the data.
    study: of images the model and the data.
  """
  if column == 'landscape':
    return _landscape(config)
  if column == 'text':
    return _text(config)
  return _images(column, config, study)


def _landscape(config: Config) -> Problem:
  """Two numbers, as a matrix [1, 2], so that every rule takes them."""

  def init(seed):
    start = jnp.array([START])
    if seed:  # 0 is the paper's own start
      start = start + 0.1 * jax.random.normal(jax.random.key(seed), (1, 2))
    return {'w': start}

  value = lambda params: landscape(*params['w'][0])
  return Problem(
      init,
      lambda seed: itertools.repeat({'mask': np.ones(1)}, config.train.steps),
      lambda dot_general: lambda params, batch, rng: (value(params), {}),
      lambda params: {'loss': float(value(params))},
      lambda params: np.asarray(params['w'][0]).tolist(),
  )


def _images(column: str, config: Config, study: StudyConfig) -> Problem:
  data = dataclasses.replace(study.images, source=column)
  if data.image_size % study.vit.patch:
    raise ConfigError(
        'VitConfig.patch must divide ImageConfig.image_size; got'
        f' {study.vit.patch} and {data.image_size}'
    )
  model = Vit(study.vit, data.classes)
  blank = jnp.zeros((1, data.image_size, data.image_size, data.channels))

  def nats(model, params, batch):
    logits = model.apply({'params': params}, batch['images'])
    hit = jnp.argmax(logits, axis=-1) == batch['labels']
    return losses.token_nats(logits, batch['labels']), hit

  def make_loss_fn(dot_general):
    own = model.clone(dot_general=dot_general)
    return lambda params, batch, rng: (jnp.sum(nats(own, params, batch)[0]), {})

  def batches(seed):
    stream = images_lib.train_batches(data, seed)
    for batch in itertools.islice(stream, config.train.steps):
      yield batch | {'mask': np.ones(len(batch['labels']), np.float32)}

  score = jax.jit(functools.partial(nats, model))
  heldout = list(images_lib.heldout_batches(data, config.train.eval_batches))

  def evaluate(params):
    results = [score(params, batch) for batch in heldout]
    loss, hit = (np.concatenate(part) for part in zip(*results))
    return {'loss': float(loss.mean()), 'accuracy': float(hit.mean())}

  return Problem(
      lambda seed: sharding.unbox(
          model.init(jax.random.key(seed), blank)['params']
      ),
      batches,
      make_loss_fn,
      evaluate,
  )


def _text(config: Config) -> Problem:
  model = language_model(config.model)
  blank = jnp.zeros((1, config.data.sequence_length), jnp.int32)
  tile = architectures.chunk_of(config.model)

  @functools.cache
  def batches(seed):
    data = dataclasses.replace(config.data, seed=seed)
    stream = pipeline.train_batches(data, tile=tile)
    return list(itertools.islice(stream, config.train.steps))

  heldout = list(
      pipeline.heldout_batches(
          config.data, config.train.eval_batches, tile=tile
      )
  )

  def evaluate(params):
    found = text.evaluate(model, params, heldout)
    return {name: found[name] for name in ('loss', 'bits_per_byte')}

  return Problem(
      lambda seed: sharding.unbox(
          model.init(jax.random.key(seed), blank)['params']
      ),
      batches,
      lambda dot_general: losses.make_loss_fn(
          model.clone(dot_general=dot_general)
      ),
      evaluate,
  )
