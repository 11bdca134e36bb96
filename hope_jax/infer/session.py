"""A memory that goes on living: read a text, be asked about it, read on.

The parameters never change; the state does, with every token fed. It is all
that the session remembers, of constant size (attention keeps a window of its
own), and it can be saved and taken up again.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ConfigError
from hope_jax.files import replacing
from hope_jax.infer import generate as generate_lib
from hope_jax.train import losses
from hope_jax.types import Array, PyTree


class Tokenizer(Protocol):
  """What a session asks of a tokenizer; those of `data.tokenizer` have it."""

  bos: int

  def encode(self, text: bytes) -> Any:
    """Returns an object whose `ids` are the tokens of a text."""
    ...

  def decode(self, ids: np.ndarray) -> bytes:
    """Returns the text of some tokens."""
    ...


class Session:
  """A model with a living memory of one stream of text.

  The token read last has not been fed to the model yet: it is the input from
  which the next one is predicted, whoever writes that.
  """

  def __init__(self, model, params: PyTree, tokenizer: Tokenizer):
    """Starts with a fresh memory.

    Args:
      model: the Flax module; hashable.
      params: its parameters, without boxes.
      tokenizer: text to tokens and back.
    """
    self._model = model
    self._params = params
    self._tokenizer = tokenizer
    self.reset()

  def reset(self) -> None:
    """Forgets everything: the next text is the beginning of a document."""
    self.state = None
    self._last = self._tokenizer.bos

  def feed(self, text: str | bytes) -> float:
    """Reads a text into the memory.

    Args:
      text: what comes next in the stream.

    Returns:
      How surprising it was, in nats a token; 0 for an empty text.
    """
    ids, nats, state = self._read(text)
    if ids.size:
      self.state, self._last = state, int(ids[-1])
    return nats

  def loss(self, text: str | bytes) -> float:
    """Returns what `feed` would, and leaves the memory as it is."""
    return self._read(text)[1]

  def generate(
      self, max_tokens: int, *, temperature: float = 1.0, seed: int = 0
  ) -> str:
    """Writes on from what was read, and remembers what it wrote.

    Args:
      max_tokens: tokens to write.
      temperature: 0 takes the likeliest token each time.
      seed: the same seed and memory give the same text.

    Returns:
      The text; bytes that are no UTF-8 show as U+FFFD.
    """
    tokens, self.state = generate_lib.generate(
        self._model,
        self._params,
        jnp.full((1, 1), self._last, jnp.int32),
        max_tokens=max_tokens,
        temperature=temperature,
        rng=jax.random.key(seed),
        state=self.state,
    )
    self._last = int(tokens[0, -1])
    written = self._tokenizer.decode(np.asarray(tokens[0]))
    return written.decode('utf-8', 'replace')

  def save(self, path: str) -> None:
    """Writes the memory to a file, whole or not at all."""
    # A fresh memory is None, which has no leaves.
    leaves = jax.tree_util.tree_leaves_with_path(self.state)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(key): np.asarray(x) for key, x in leaves
    }
    with replacing(path, 'wb') as file:
      np.savez(file, last=np.int32(self._last), **arrays)

  def load(self, path: str) -> None:
    """Takes up a memory that `save` wrote.

    Raises:
      ConfigError: the file is not there, is damaged, or is the memory of
        another model.
    """
    try:
      with np.load(path) as file:
        arrays = dict(file)
        last = int(arrays.pop('last'))
    except Exception as error:  # zipfile, zlib, NumPy and the system raise.
      raise ConfigError(f'{path!r} is not a saved memory: {error}') from error

    def take(key, leaf):
      name = jax.tree_util.keystr(key)
      found = arrays.get(name)
      if found is None or found.shape != leaf.shape:
        raise ConfigError(
            f'{path!r} is the memory of another model: {name} should have shape'
            f' {leaf.shape}; found {getattr(found, "shape", "nothing")}'
        )
      # A file keeps bfloat16 as two bytes without a meaning.
      return jnp.asarray(found.view(leaf.dtype))

    state = None
    if arrays:
      _, like = jax.eval_shape(
          lambda params, tokens: self._model.apply({'params': params}, tokens),
          self._params,
          jnp.zeros((1, 1), jnp.int32),
      )
      state = jax.tree_util.tree_map_with_path(take, like)
    self.state, self._last = state, last

  def _read(self, text: str | bytes) -> tuple[np.ndarray, float, PyTree]:
    """Returns the tokens of a text, its nats a token and the state after it."""
    text = text.encode() if isinstance(text, str) else text
    ids = np.asarray(self._tokenizer.encode(text).ids, np.int32)
    if not ids.size:
      return ids, 0.0, self.state
    inputs = np.concatenate([[self._last], ids[:-1]]).astype(np.int32)
    logits, state = generate_lib.prefill(
        self._model, self._params, inputs[None], self.state
    )
    return ids, float(jnp.mean(_nats(logits, ids[None]))), state


@jax.jit
def _nats(logits: Array, targets: Array) -> Array:
  return losses.token_nats(logits, targets)
