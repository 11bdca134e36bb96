"""Sampling: the prompt in one call, then a token at a time, state handed on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.types import Array, PyTree


class Generation(NamedTuple):
  """Sampled tokens, and the memory after them."""

  tokens: Array  # int32 [B, max_tokens]
  # The model's state after the prompt and all sampled tokens but the last: hand
  # that one over as the next prompt to go on.
  state: PyTree


def generate(
    model,
    params: PyTree,
    prompt_tokens: Array,
    *,
    max_tokens: int,
    temperature: float,
    rng: Array,
    state: PyTree = None,
) -> Generation:
  """Continues a prompt.

  Args:
    model: the Flax module; hashable.
    params: its parameters.
    prompt_tokens: int32 [B, T], T >= 1.
    max_tokens: tokens to sample, >= 1.
    temperature: the logits are divided by it; 0 takes the likeliest token.
    rng: a key; the same one gives the same tokens.
    state: the model's state before the prompt; None for a fresh memory.

  Returns:
    The tokens and the state.

  Raises:
    ValueError: an empty prompt, no tokens asked for, a negative temperature.
  """
  if prompt_tokens.ndim != 2 or not prompt_tokens.shape[1]:
    raise ValueError(
        'prompt_tokens must be [B, T] with T >= 1; got shape'
        f' {prompt_tokens.shape}'
    )
  if max_tokens < 1:
    raise ValueError(f'max_tokens must be at least 1; got {max_tokens}')
  if temperature < 0:
    raise ValueError(f'temperature must not be negative; got {temperature}')
  logits, state = prefill(model, params, prompt_tokens, state)
  return _sample(
      model,
      params,
      logits[:, -1],
      state,
      rng,
      jnp.float32(temperature),
      max_tokens=max_tokens,
      greedy=temperature == 0,
  )


@functools.partial(jax.jit, static_argnames='model')
def _apply(model, params, tokens, state):
  return model.apply({'params': params}, tokens, state=state)


# Tokens fed in one call. A text is fed in calls of this length and the rest in
# powers of two, so that all lengths share ten compiled programs.
_LONGEST = 512


def prefill(
    model, params: PyTree, tokens: Array | np.ndarray, state: PyTree = None
) -> tuple[Array, PyTree]:
  """Feeds tokens to the model, in calls whose lengths repeat.

  Args:
    model: the Flax module; hashable.
    params: its parameters.
    tokens: int32 [B, T], T >= 1.
    state: the state before them; None for a fresh memory.

  Returns:
    Logits float32 [B, T, E] and the state after the tokens: what one call of
    the model would give.
  """
  logits, start, length = [], 0, tokens.shape[1]
  while start < length:
    left = length - start
    size = _LONGEST if left >= _LONGEST else 1 << (left.bit_length() - 1)
    some, state = _apply(model, params, tokens[:, start : start + size], state)
    logits.append(some)
    start += size
  return jnp.concatenate(logits, axis=1), state


@functools.partial(
    jax.jit, static_argnames=('model', 'max_tokens', 'greedy')
)
def _sample(
    model, params, logits, state, rng, temperature, *, max_tokens, greedy
):
  def choose(logits, key):
    if greedy:
      token = jnp.argmax(logits, axis=-1)
    else:
      token = jax.random.categorical(key, logits / temperature)
    return token.astype(jnp.int32)

  def step(carry, key):
    """Carry: (token [B], state); xs: a key; ys: the token after it."""
    token, state = carry
    logits, state = model.apply({'params': params}, token[:, None], state=state)
    token = choose(logits[:, -1], key)
    return (token, state), token

  keys = jax.random.split(rng, max_tokens)
  first = choose(logits, keys[0])
  (_, state), others = jax.lax.scan(step, (first, state), keys[1:])
  tokens = jnp.concatenate([first[None], others])
  return Generation(tokens.T, state)
