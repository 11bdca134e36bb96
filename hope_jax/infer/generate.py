"""Sampling: the prompt in a few calls, then a token at a time, state handed on.

Programs are compiled for a few lengths only, whatever the lengths of prompts
and answers: a text is fed in pieces of `SIZES`, and one loop, which is told how
often to go round, writes.
"""

from collections.abc import Iterator
import functools
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import ConfigError
from hope_jax.types import Array, PyTree

# Tokens of a call. Small steps between them would be more programs to compile,
# large ones more calls: up to 7 of each size but the first.
SIZES = (512, 64, 8, 1)
# Most tokens that one call of the writing loop has room for.
_ROOM = 256
# Outside, logits / temperature leaves float32, or all tokens are one.
TEMPERATURES = (1e-6, 1e6)


class Generation(NamedTuple):
  """Sampled tokens, and the memory after them."""

  tokens: np.ndarray  # int32 [B, max_tokens], fewer where `stop` was written
  # The model's state after the prompt and all sampled tokens but the last: hand
  # that one over as the next prompt to go on.
  state: PyTree


def check_sampling(
    max_tokens: int, temperature: float, seed: int | None = None
) -> None:
  """Raises a ConfigError unless the arguments of a sample can be used."""
  if not _is_integer(max_tokens) or not 1 <= max_tokens < 2**31:
    raise ConfigError(
        f'max_tokens must be at least 1 and below 2^31; got {max_tokens!r}'
    )
  low, high = TEMPERATURES
  real = isinstance(temperature, numbers.Real)
  # A NaN compares as false.
  if not real or not (temperature == 0 or low <= temperature <= high):
    raise ConfigError(
        f'temperature must be 0 (the likeliest token), or from {low:g} to'
        f' {high:g}; got {temperature!r}'
    )
  if seed is not None and not (_is_integer(seed) and 0 <= seed < 2**32):
    raise ConfigError(f'seed must be from 0 to 2^32 - 1; got {seed!r}')


def _is_integer(x: object) -> bool:
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def generate(
    model,
    params: PyTree,
    prompt_tokens: Array | np.ndarray,
    *,
    max_tokens: int,
    temperature: float,
    rng: Array,
    drawn: int = 0,
    stop: int | None = None,
    state: PyTree = None,
) -> Generation:
  """Continues a prompt.

  Token i is argmax(logits + temperature g_i), the g_i of Gumbel's distribution:
  a draw from softmax(logits / temperature). g_i depends on `rng` and on
  `drawn` + i alone, so that several calls write what one would.

  Args:
    model: the Flax module; hashable.
    params: its parameters.
    prompt_tokens: int32 [B, T], T >= 1.
    max_tokens: tokens to sample, >= 1.
    temperature: 0 takes the likeliest token.
    rng: a key; the same one gives the same tokens.
    drawn: where in the sequence of random numbers to begin.
    stop: a token to stop behind, once all rows have written it; what a row has
      after it is no part of its text. None: there is none.
    state: the model's state before the prompt; None for a fresh memory.

  Returns:
    The tokens and the state.

  Raises:
    ConfigError: an empty prompt, or arguments out of their range.
    FloatingPointError: the model's logits are not finite.
  """
  prompt = np.asarray(prompt_tokens, np.int32)
  if prompt.ndim != 2 or not prompt.shape[1]:
    raise ConfigError(
        f'prompt_tokens must be [B, T] with T >= 1; got shape {prompt.shape}'
    )
  check_sampling(max_tokens, temperature)
  if prompt.shape[1] > 1:
    state = prefill(model, params, prompt[:, :-1], state)
  token, found, ended = prompt[:, -1], [], np.zeros(len(prompt), bool)
  while max_tokens and not ended.all():
    done = _write(
        model, params, token, state, ended, rng, np.uint32(drawn % 2**32),
        np.int32(min(max_tokens, _ROOM)), np.float32(temperature),
        np.int32(-1 if stop is None else stop),
    )
    if not done.sound:
      raise FloatingPointError(
          'the logits of the model are not finite: its parameters, or the'
          ' memory it goes on from, are broken'
      )
    count = int(done.count)
    found.append(np.asarray(done.tokens)[:count])
    token, state, ended = done.last, done.state, np.asarray(done.ended)
    max_tokens, drawn = max_tokens - count, drawn + count
  return Generation(np.concatenate(found).T, state)


def pieces(length: int) -> Iterator[slice]:
  """Yields the parts of a text of some tokens, each as long as one of SIZES."""
  start = 0
  for size in SIZES:
    while length - start >= size:
      yield slice(start, start + size)
      start += size


def prefill(
    model, params: PyTree, tokens: Array | np.ndarray, state: PyTree = None
) -> PyTree:
  """Feeds tokens to the model, without asking what comes next.

  Args:
    model: the Flax module; hashable.
    params: its parameters.
    tokens: int32 [B, T], T >= 1.
    state: the state before them; None for a fresh memory.

  Returns:
    The state after the tokens: what one call of the model would give.
  """
  tokens = np.asarray(tokens, np.int32)
  for piece in pieces(tokens.shape[1]):
    state = _feed(model, params, tokens[:, piece], state)
  return state


@functools.partial(jax.jit, static_argnames='model')
def _feed(model, params, tokens, state):
  # Logits at no position: they would be most of the memory.
  nowhere = jnp.zeros((tokens.shape[0], 0), jnp.int32)
  return model.apply(
      {'params': params}, tokens, state=state, positions=nowhere
  )[1]


class _Written(NamedTuple):
  """What the writing loop carries."""

  count: Array  # int32 [], tokens written
  last: Array  # int32 [B], the token written last
  state: PyTree
  tokens: Array  # int32 [ROOM, B]
  ended: Array  # bool [B], whether the token to stop behind was written
  sound: Array  # bool [], whether all logits were finite


@functools.partial(jax.jit, static_argnames='model')
def _write(
    model, params, token, state, ended, key, drawn, count, temperature, stop
) -> _Written:
  """Feeds `token` and writes up to `count` after it."""

  def step(before: _Written) -> _Written:
    i = before.count
    logits, state = model.apply(
        {'params': params}, before.last[:, None], state=before.state
    )
    logits = logits[:, -1].astype(jnp.float32)
    noise = jax.random.gumbel(
        jax.random.fold_in(key, drawn + i.astype(jnp.uint32)), logits.shape,
        jnp.float32,
    )
    # Multiplied, not divided: 0 is the likeliest token without a case of its
    # own, and nothing overflows.
    token = jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
    return _Written(
        i + 1, token, state, before.tokens.at[i].set(token),
        before.ended | (token == stop),
        # A maximum passes a NaN on; that a token cannot be (-inf) is sound.
        before.sound & jnp.all(jnp.isfinite(jnp.max(logits, axis=-1))),
    )

  def more(carry: _Written) -> Array:
    return (carry.count < count) & carry.sound & ~jnp.all(carry.ended)

  carry = _Written(
      jnp.int32(0), token, state, jnp.zeros((_ROOM, *token.shape), jnp.int32),
      ended, jnp.bool_(True),
  )
  # A fresh memory has no tree of its own yet.
  carry = step(carry) if state is None else carry
  return jax.lax.while_loop(more, step, carry)
