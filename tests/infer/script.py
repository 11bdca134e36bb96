"""A model that is sure of a text, which is its parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.data.tokenizer import ByteTokenizer
from hope_jax.infer.session import Session

VOCAB = 257
LLAMA = '\U0001f999'  # Four bytes.


class Script:
  """At place i of a stream it is sure of token i of its parameters."""

  def apply(self, variables, tokens, state=None, *, positions=None):
    script = variables['params']
    batch, length = tokens.shape
    start = jnp.zeros((batch,), jnp.int32) if state is None else state
    at = start[:, None] + jnp.arange(length)
    if positions is not None:
      at = jnp.take_along_axis(at, positions, axis=1)
    wanted = script['tokens'][at % script['size']]
    return 100 * jax.nn.one_hot(wanted, VOCAB), start + length


# One, so that it is compiled once for all texts.
MODEL = Script()


class Ending(ByteTokenizer):
  """Bytes, and one more token that ends a document."""

  eos = 256

  def decode(self, ids):
    return super().decode(np.asarray([i for i in ids if i < 256], np.int64))


def session(tokens, tokenizer=None):
  """A session of a model that is sure of these tokens, and begins anew."""
  script = np.zeros(512, np.int32)
  script[: len(tokens)] = tokens
  params = {'tokens': script, 'size': np.int32(len(tokens))}
  return Session(MODEL, params, tokenizer or ByteTokenizer())
