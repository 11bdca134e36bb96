"""Hope in the in-context regime: CMS levels that learn from what they read.

Wraps a `LanguageModel` and has its interface. Every sequence owns fast copies
of all CMS levels. A chunk (the fastest level's period) is read with weights
that stand still; its own next-token loss, over the predictions that are made
and checked inside the chunk, then moves the levels that are due. So a
prediction depends on earlier chunks only, and an update on nothing later than
its chunk.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.models.lm import LanguageModel
from hope_jax.nested import continuum, levels
from hope_jax.types import Array, PyTree


class ContextState(NamedTuple):
  """What a stream hands on; leaves lead with B but for `fill`."""

  fast: continuum.FastState
  model: PyTree  # state of the language model after the last token
  begin: PyTree  # its state at the start of the open chunk
  tokens: Array  # [B, C] int32 tokens of the open chunk
  segment_ids: Array  # [B, C] int32
  fill: Array  # int32 scalar: tokens in the open chunk, the same in all rows


class InContextModel:
  """A language model whose CMS levels are fast weights of each sequence.

      model = InContextModel(config)     # config.continuum.regime 'in_context'
      logits, state = model.apply({'params': params}, tokens, state)

  Parameters are those of `LanguageModel`; the levels' are initial states. A
  text may be fed in pieces of any length. Documents must start at multiples of
  the fastest period: a start elsewhere gives NaN in its row.
  """

  def __init__(self, config: ModelConfig):
    self.config = config
    self.inner = LanguageModel(config)
    c = config.continuum
    self.options = continuum.Options(
        c.periods, c.learning_rates, c.variant, c.outer_gradient, c.accumulate
    )
    self.chunk = c.periods[0]

  def init(self, rng: Array, tokens: Array) -> PyTree:
    """Parameters of the language model, as `LanguageModel.init`."""
    return self.inner.init(rng, tokens)

  def apply(
      self,
      variables: PyTree,
      tokens: Array,
      state: ContextState | None = None,
      *,
      segment_ids: Array | None = None,
      mutable: Any = False,
  ) -> Any:
    """Predicts the next token at every position, learning on the way.

    Args:
      variables: {'params': ...} of `LanguageModel`.
      tokens: [B, T] int.
      state: what an earlier call returned; None is a fresh start.
      segment_ids: [B, T] int as in `LanguageModel`.
      mutable: as in flax; diagnostics are those of the last chunk and empty.

    Returns:
      Logits [B, T, E] float32 and the state; with `mutable`, also {}.
    """
    params = variables['params']
    batch, length = tokens.shape
    ids = segment_ids
    if ids is None:
      ids = jnp.ones_like(tokens)
      if state is not None:  # goes on with the document of the last call
        ids = ids * jnp.maximum(state.model['place'].segment, 1)[:, None]
    fresh = state is None
    if fresh:
      state = self._start(params, tokens)
    run = _Run(self, params, segment_ids is not None)
    pieces = []
    fill = 0 if fresh else _concrete(state.fill)
    if fill is None:  # inside a compiled loop: one token at a time is exact
      def token(state, xs):
        """carry: the stream; xs: one token and its id, [B]."""
        logits, state = run.piece(state, *(x[:, None] for x in xs))
        return state, logits[:, 0]

      state, logits = jax.lax.scan(token, state, (tokens.T, ids.T))
      out = jnp.moveaxis(logits, 0, 1), state
      return (out, {}) if mutable else out
    at = 0
    while at < length:
      if fill == 0 and length - at >= self.chunk:
        size = (length - at) // self.chunk * self.chunk
        step = run.chunks
      else:
        size = min(self.chunk - fill, length - at)
        step = run.piece
      part = slice(at, at + size)
      logits, state = step(state, tokens[:, part], ids[:, part])
      pieces.append(logits)
      at, fill = at + size, (fill + size) % self.chunk
    out = jnp.concatenate(pieces, axis=1), state
    return (out, {}) if mutable else out

  def _start(self, params: PyTree, tokens: Array) -> ContextState:
    batch = tokens.shape[0]
    theta = levels_of(params, len(self.options.periods))
    fast = continuum.fast_state(theta, self.options)
    fast = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (batch, *x.shape)), fast
    )
    # The state of the language model before any token: read padding only.
    nothing = jnp.zeros((batch, 1), jnp.int32)
    _, begin = self.inner.apply(
        {'params': params}, nothing, segment_ids=nothing
    )
    open_chunk = jnp.zeros((batch, self.chunk), jnp.int32)
    return ContextState(
        fast, begin, begin, open_chunk, open_chunk, jnp.zeros((), jnp.int32)
    )


def levels_of(params: PyTree, count: int) -> tuple[PyTree, ...]:
  """The CMS levels of a parameter tree, fastest first; leaves [L, ...]."""
  block = params['layers']['continuum']
  return tuple(block[f'level_{i}'] for i in range(count))


def with_levels(params: PyTree, thetas: tuple[PyTree, ...]) -> PyTree:
  """The parameter tree with other CMS levels."""
  block = dict(params['layers']['continuum'])
  block.update({f'level_{i}': theta for i, theta in enumerate(thetas)})
  return {**params, 'layers': {**params['layers'], 'continuum': block}}


def _concrete(fill: Array) -> int | None:
  return None if isinstance(fill, jax.core.Tracer) else int(fill)


class _Run:
  """One call: reads pieces and whole chunks with the same functions."""

  def __init__(self, model: InContextModel, params: PyTree, packed: bool):
    self.model = model
    self.params = params
    self.packed = packed
    self.theta = levels_of(params, len(model.options.periods))

  def _loss(self, weights, tokens, ids, begin):
    """Summed loss of one row's chunk; outputs are its logits and state."""
    params = with_levels(self.params, weights)
    logits, state = self.model.inner.apply(
        {'params': params}, tokens[None], begin, segment_ids=ids[None]
    )
    log_p = jax.nn.log_softmax(logits[0, :-1], axis=-1)
    right = jnp.take_along_axis(log_p, tokens[1:, None], axis=-1)[:, 0]
    counts = (ids[1:] == ids[:-1]) & (ids[1:] != 0)
    return -jnp.sum(jnp.where(counts, right, 0)), (logits[0], state)

  def _restart(self, state, ids):
    """Resets rows whose chunk starts a document; says if one starts inside."""
    before = state.model['place'].segment
    first = ids[:, 0]
    starts = (first != 0) & (first != before) & (state.fill == 0)
    # A tree of zeros is the initial state, for every field.
    zeros = jax.tree.map(jnp.zeros_like, state.fast)
    fast = levels.select(starts, zeros, state.fast)
    held = jnp.where(first != 0, first, before)
    inside = jnp.any((ids != held[:, None]) & (ids != 0), axis=1)
    inside |= (first != 0) & (first != before) & (before != 0) & (
        state.fill != 0
    )
    return state._replace(fast=fast), inside

  def _learn(self, state, tokens, ids):
    """Reads a whole chunk from its start; updates the levels that are due."""
    model = self.model

    def row(fast, begin, tokens, ids):
      begin = _map_rows(lambda x, axis: jnp.expand_dims(x, axis), begin)
      (logits, end), fast = continuum.chunk(
          self._loss, self.theta, fast, tokens, ids, begin,
          tokens=model.chunk, options=model.options,
      )
      end = _map_rows(lambda x, axis: jnp.squeeze(x, axis), end)
      return logits, end, fast

    axes = _row_axes(state.begin)
    return jax.vmap(row, in_axes=(0, axes, 0, 0), out_axes=(0, axes, 0))(
        state.fast, state.begin, tokens, ids
    )

  def chunks(self, state, tokens, ids):
    """Whole chunks, [B, N * C], from a chunk's start."""
    batch, size = tokens.shape[0], self.model.chunk

    def body(state, xs):
      """carry: the stream; xs: tokens and ids of one chunk, [B, C]."""
      tokens, ids = xs
      bad = jnp.zeros((batch,), bool)
      if self.packed:
        state, bad = self._restart(state, ids)
      logits, end, fast = self._learn(state, tokens, ids)
      logits = jnp.where(bad[:, None, None], jnp.nan, logits)
      return state._replace(fast=fast, model=end, begin=end), logits

    cut = lambda x: jnp.moveaxis(x.reshape(batch, -1, size), 1, 0)
    state, logits = jax.lax.scan(
        jax.checkpoint(body), state, (cut(tokens), cut(ids))
    )
    logits = jnp.moveaxis(logits, 0, 1)
    return logits.reshape(batch, -1, logits.shape[-1]), state

  def piece(self, state, tokens, ids):
    """Part of a chunk, [B, <= C - fill]; learns if it completes the chunk."""
    bad = jnp.zeros((tokens.shape[0],), bool)
    if self.packed:
      state, bad = self._restart(state, ids)

    def row(offset, model_state, tokens, ids):
      weights = jax.tree.map(jnp.add, self.theta, offset)
      model_state = _map_rows(
          lambda x, axis: jnp.expand_dims(x, axis), model_state
      )
      logits, end = self.model.inner.apply(
          {'params': with_levels(self.params, weights)},
          tokens[None], model_state, segment_ids=ids[None],
      )
      return logits[0], _map_rows(lambda x, axis: jnp.squeeze(x, axis), end)

    axes = _row_axes(state.model)
    logits, end = jax.vmap(row, in_axes=(0, axes, 0, 0), out_axes=(0, axes))(
        state.fast.offset, state.model, tokens, ids
    )
    logits = jnp.where(bad[:, None, None], jnp.nan, logits)
    place = lambda old, new: jax.lax.dynamic_update_slice(
        old, new.astype(old.dtype), (0, state.fill)
    )
    state = state._replace(
        model=end,
        tokens=place(state.tokens, tokens),
        segment_ids=place(state.segment_ids, ids),
        fill=state.fill + tokens.shape[1],
    )

    def complete(state):
      _, end, fast = self._learn(state, state.tokens, state.segment_ids)
      return state._replace(
          fast=fast, model=end, begin=end, fill=jnp.zeros_like(state.fill)
      )

    full = state.fill == self.model.chunk
    return logits, jax.lax.cond(full, complete, lambda s: s, state)


def _row_axes(state: PyTree) -> PyTree:
  """Axis of B in each leaf of a language model's state: 1 behind layers."""
  return {
      'place': jax.tree.map(lambda _: 0, state['place']),
      'layers': jax.tree.map(lambda _: 1, state['layers']),
  }


def _map_rows(f, state: PyTree) -> PyTree:
  return jax.tree.map(f, state, _row_axes(state))

