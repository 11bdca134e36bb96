"""A memory that goes on living: read a text, be asked about it, read on.

The parameters never change; the state does, with every token fed. It is all
that the session remembers of the text, of constant size (attention keeps a
window of its own). With where the stream stands and what its random numbers
come from, it can be saved and taken up again.
"""

import codecs
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ConfigError
from hope_jax.infer import generate as generate_lib
from hope_jax.infer import memory_file
from hope_jax.infer.memory_file import Memory
from hope_jax.train import losses
from hope_jax.types import PyTree

# Models count the tokens of a stream in int32.
_MOST_TOKENS = 2**31 - 1


class Tokenizer(Protocol):
  """What a session asks of a tokenizer; those of `data.tokenizer` have it.

  One that has an `eos`, the token that ends a document, says when a text is
  done; one that has a `fingerprint`, a str, is told from others in the files of
  saved memories.
  """

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
  which the next one is predicted, whoever writes that. A stream is one text,
  however it is fed: n calls read, and write, what one call would.
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
    self._eos = getattr(tokenizer, 'eos', None)
    self.reset()

  def reset(self) -> None:
    """Forgets everything: the next text is the beginning of a document."""
    self._set(Memory(None, self._tokenizer.bos, position=0, seed=0))

  @property
  def unfinished(self) -> bytes:
    """What is there, at the stream's end, of a character that is not whole."""
    return self._decoder.getstate()[0]

  @property
  def ended(self) -> bool:
    """Whether the stream stands at the end of a document."""
    # Some vocabularies begin and end documents with the same token.
    return self._position > 0 and self._last == self._eos

  def feed(self, text: str | bytes) -> float:
    """Reads a text into the memory.

    Args:
      text: what comes next in the stream, in UTF-8 or any bytes. Of a str,
        bytes that Python escaped (`surrogateescape`) are those bytes.

    Returns:
      How surprising it was, in nats a token; 0 for an empty text.

    Raises:
      FloatingPointError: that is not finite; the memory stays what it was.
    """
    text = _as_bytes(text)
    ids, nats, state = self._read(text)
    if ids.size:
      self.state, self._last = state, int(ids[-1])
      self._position += len(ids)
      self._decoder.decode(text)
    return nats

  def loss(self, text: str | bytes) -> float:
    """Returns what `feed` would, and leaves the memory as it is."""
    return self._read(_as_bytes(text))[1]

  def generate(
      self,
      max_tokens: int,
      *,
      temperature: float = 1.0,
      seed: int | None = None,
      stop_at_end: bool = True,
  ) -> str:
    """Writes on from what was read, and remembers what it wrote.

    The random number behind a token depends on the seed and on the token's
    place in the stream alone.

    Args:
      max_tokens: tokens to write.
      temperature: 0 takes the likeliest token each time.
      seed: the same seed and memory give the same text; None: the seed given
        last, of this session and its saved memory; 0 at first.
      stop_at_end: write no further than the end of the document, where the
        tokenizer has a token for it; at the end of one, nothing. What is fed
        next goes on from there.

    Returns:
      The text, as far as its last character is whole: the rest comes with the
      next call, or with `flush`. Bytes that are no UTF-8 show as U+FFFD.

    Raises:
      ConfigError: arguments out of their range.
      FloatingPointError: the model's logits are not finite; the memory stays
        what it was.
    """
    generate_lib.check_sampling(max_tokens, temperature, seed)
    self._seed = self._seed if seed is None else int(seed)
    if stop_at_end and self.ended:
      return ''
    self._require_room(max_tokens)
    tokens, self.state = generate_lib.generate(
        self._model,
        self._params,
        np.full((1, 1), self._last, np.int32),
        max_tokens=max_tokens,
        temperature=temperature,
        rng=jax.random.key(np.uint32(self._seed)),
        drawn=self._position,
        stop=self._eos if stop_at_end else None,
        state=self.state,
    )
    ids = np.asarray(tokens[0])
    before, self._last = self._last, int(ids[-1])
    self._position += len(ids)
    text = self._decoder.decode(self._text(before, ids))
    return text + self.flush() if stop_at_end and self.ended else text

  def flush(self) -> str:
    """Returns what is left of a character that was never finished, as U+FFFD.

    To be called where no more is written; '' where nothing is left.
    """
    return self._decoder.decode(b'', final=True)

  def save(self, path: str) -> None:
    """Writes the memory to a file, whole or not at all.

    Raises:
      ConfigError: it cannot be written there.
    """
    memory = Memory(
        self.state, self._last, self._position, self._seed, self.unfinished
    )
    memory_file.write(path, memory, self._owner)

  def load(self, path: str) -> None:
    """Takes up a memory that `save` wrote.

    Nothing is taken before all of it is known to be right.

    Raises:
      ConfigError: the file is not there, is damaged, or is the memory of
        another model, of other parameters or of another tokenizer.
    """

    def like() -> PyTree:
      return jax.eval_shape(
          lambda params, tokens: self._model.apply({'params': params}, tokens),
          self._params,
          jnp.zeros((1, 1), jnp.int32),
      )[1]

    memory = memory_file.read(path, like, self._owner)
    arrays = jax.tree.map(jnp.asarray, memory.state)
    self._set(memory._replace(state=arrays))

  def _set(self, memory: Memory) -> None:
    self.state: PyTree = memory.state
    self._last = memory.last
    self._position = memory.position  # tokens fed: those before `last`
    self._seed = memory.seed
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._decoder.decode(memory.unfinished)

  @functools.cached_property
  def _owner(self) -> memory_file.Owner:
    """Parameters never change: their fingerprint is taken once."""
    return memory_file.owner(self._model, self._params, self._tokenizer)

  def _text(self, before: int, ids: np.ndarray) -> bytes:
    """Returns the text of tokens, as what follows the token before them.

    By themselves, many vocabularies drop the blank that a word begins with.
    """
    ids = ids if self._eos is None else ids[ids != self._eos]
    head = self._tokenizer.decode(np.array([before], np.int32))
    whole = self._tokenizer.decode(np.array([before, *ids], np.int32))
    if not whole.startswith(head):
      return self._tokenizer.decode(ids)
    return whole[len(head) :]

  def _require_room(self, count: int) -> None:
    if self._position + count > _MOST_TOKENS:
      raise ConfigError(
          f'the stream has {self._position} tokens, and {count} more are'
          f' beyond {_MOST_TOKENS}, the most that are counted: reset it'
      )

  def _read(self, text: bytes) -> tuple[np.ndarray, float, PyTree]:
    """Returns the tokens of a text, its nats a token and the state after it."""
    ids = np.asarray(self._tokenizer.encode(text).ids).astype(np.int32)
    if not ids.size:
      return ids, 0.0, self.state
    self._require_room(len(ids))
    inputs = np.concatenate([[self._last], ids[:-1]]).astype(np.int32)
    nats, state = [], self.state
    for piece in generate_lib.pieces(len(ids)):
      some, state = _score(
          self._model, self._params, inputs[None, piece], ids[None, piece],
          state,
      )
      nats.append(some)
    mean = float(np.sum(np.array(nats, np.float64))) / len(ids)
    if not np.isfinite(mean):
      raise FloatingPointError(
          f'the loss of the text is {mean}: the parameters of the model, or the'
          ' memory it goes on from, are broken'
      )
    return ids, mean, state


def _as_bytes(text: str | bytes) -> bytes:
  if isinstance(text, (bytes, bytearray, memoryview)):
    return bytes(text)
  if not isinstance(text, str):
    raise ConfigError(f'a text must be str or bytes; got {type(text).__name__}')
  try:
    return text.encode('utf-8', 'surrogateescape')
  except UnicodeEncodeError as error:
    raise ConfigError(
        f'a text must be of characters; at {error.start} is half of a surrogate'
        f' pair, {text[error.start]!r}: give bytes, or what they decode to'
    ) from error


@functools.partial(jax.jit, static_argnames='model')
def _score(model, params, tokens, targets, state):
  """Summed nats of the targets, and the state after the tokens.

  The logits never leave it: they are most of what there is.
  """
  logits, state = model.apply({'params': params}, tokens, state=state)
  return jnp.sum(losses.token_nats(logits, targets)), state
