"""The in-context regime: CMS levels that learn from what they read.

Every sequence owns fast copies of all CMS levels. A chunk (the fastest level's
period) is read with weights that stand still; its own next-token loss, over the
predictions that are made and checked inside the chunk, then moves the levels
that are due. So a prediction depends on earlier chunks only, and an update on
nothing later than its chunk.
"""

import dataclasses
from typing import NamedTuple

from flax.core import meta
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.config import ModelConfig
from hope_jax.models.blocks import fast_shapes
from hope_jax.models.layers import DotGeneral
from hope_jax.models.lm import LanguageModel
from hope_jax.models.packing import locate, require_dense, require_room
from hope_jax.nested import continuum, levels
from hope_jax.sharding import constrain
from hope_jax.types import Array, PyTree


class ContextState(NamedTuple):
  """What a stream hands on: the fast weights, and the chunk that is open.

  The open chunk is read anew with each call that adds to it, from where it
  begins. One token after the other this is C times the work of its own, but as
  many reads of the weights, which are what decoding waits for.
  """

  fast: continuum.FastState  # leaves [B, L, ...]
  begin: PyTree  # state of the language model at the start of the open chunk
  tokens: Array  # [B, C] int32 tokens of the open chunk
  segment_ids: Array  # [B, C] int32; 0 where nothing has been read
  fill: Array  # int32 scalar: tokens in the open chunk, the same in all rows


class InContextModel(nn.Module):
  """A language model whose CMS levels are fast weights of each sequence.

      model = InContextModel(config)     # config.continuum.regime 'in_context'
      logits, state = model.apply({'params': params}, tokens, state)

  Parameters are those of `LanguageModel`; the levels' are initial states. A
  text may be fed in calls of any length. Segments must start at multiples of
  the fastest period: a start elsewhere is refused, or where that cannot be seen
  (inside `jit`) gives NaN in its row, see `nested.levels.REASONS`. Padding
  takes its place in the open chunk, so that no document goes on behind it.

  Attributes:
    config: sizes and choices.
    dot_general: of every `Dense`.
  """

  config: ModelConfig
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(
      self,
      tokens: Array,
      state: ContextState | None = None,
      *,
      segment_ids: Array | None = None,
      positions: Array | None = None,
  ) -> tuple[Array, ContextState]:
    """Predicts the next token at every position, learning on the way.

    Args and Returns: as `LanguageModel`.
    """
    model = LanguageModel(self.config, self.dot_general)
    nn.share_scope(self, model)
    if self.is_initializing():
      return model(tokens, segment_ids=segment_ids, positions=positions)
    # A chunk is rematerialised as a whole.
    place, fill = None, 0
    if state is not None:
      open_chunk, fill = state.segment_ids, state.fill
      begin = state.begin['place']
      _, place = locate(open_chunk, begin, *open_chunk.shape)
      require_dense(segment_ids, place, fill, self.config.continuum.periods[0])
    require_room(self.config, segment_ids, place, fill)
    config = dataclasses.replace(self.config, remat='none')
    pure = LanguageModel(config, self.dot_general, parent=None)
    reader = _Reader(pure, meta.unbox(self.variables['params']))
    logits, state, diagnostics = reader.read(tokens, state, segment_ids)
    if self.is_mutable_collection('diagnostics'):
      for name, value in diagnostics.items():
        self.put_variable('diagnostics', name, value)
    if positions is not None:
      logits = jnp.take_along_axis(logits, positions[..., None], axis=1)
    return logits, state


class _Reader:
  """Reads a call chunk by chunk, with pure functions of the parameters."""

  def __init__(self, model: LanguageModel, params: PyTree):
    c = model.config.continuum
    self.options = continuum.Options(
        c.periods, c.learning_rates, c.variant, c.outer_gradient, c.accumulate
    )
    self.size = c.periods[0]
    self.model = model
    self.params = params

  def read(self, tokens, state, segment_ids):
    """Returns logits [B, T, E], the next state and diagnostics [N, ...]."""
    batch, length = tokens.shape
    ids = segment_ids
    if state is None:
      fill, state = 0, self._start(batch)
      ids = jnp.ones_like(tokens) if ids is None else ids
      count = -(-length // self.size)
    else:
      fill = state.fill
      if ids is None:  # goes on with the segment of the last call
        last = jnp.max(state.segment_ids, axis=1)
        last = jnp.where(last > 0, last, state.begin['place'].segment)
        ids = jnp.broadcast_to(jnp.maximum(last, 1)[:, None], tokens.shape)
      count = -(-(self.size - 1 + length) // self.size)

    def lay_out(open_chunk, new):
      """All chunks of the call, [B, N C], the open one first."""
      row = jnp.pad(open_chunk, ((0, 0), (0, (count - 1) * self.size)))
      new = new.astype(row.dtype)
      return jax.lax.dynamic_update_slice_in_dim(row, new, fill, axis=1)

    inputs = (
        lay_out(state.tokens, tokens), lay_out(state.segment_ids, ids)
    )
    chunks = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(batch, count, self.size), 1, 0), inputs
    )
    whole = isinstance(fill, int) and length % self.size == 0
    chunk = jnp.arange(count, dtype=jnp.int32)
    complete = (1 + chunk) * self.size <= fill + length
    carry, (logits, diagnostics) = jax.lax.scan(
        jax.checkpoint(self._chunk),
        (state.fast, state.begin),
        (*chunks, None if whole else complete),
    )
    logits = jnp.moveaxis(logits, 0, 1).reshape(batch, -1, logits.shape[-1])
    logits = jax.lax.dynamic_slice_in_dim(logits, fill, length, axis=1)
    end = fill + length

    def still_open(row):
      """What follows the last complete chunk, [B, C]; 0 where nothing does."""
      row = jnp.pad(row, ((0, 0), (0, self.size)))
      begin = end // self.size * self.size
      return jax.lax.dynamic_slice_in_dim(row, begin, self.size, axis=1)

    fill = jnp.asarray(end % self.size, jnp.int32)
    state = ContextState(*carry, *map(still_open, inputs), fill=fill)
    return logits, state, diagnostics

  def _start(self, batch: int) -> ContextState:
    fast = continuum.fast_state(
        fast_shapes(self.model.config), self.options, (batch,)
    )
    fast = jax.tree.map(
        lambda x: constrain(x, 'batch', *(None,) * (x.ndim - 1)), fast
    )
    # Zeros, as a segment starts with the first token and resets every state.
    empty = jnp.zeros((batch, self.size), jnp.int32)
    _, (_, begin, _) = jax.eval_shape(
        self._loss, fast.offset, self.params, None, empty, empty
    )
    begin = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), begin)
    return ContextState(fast, begin, empty, empty, jnp.zeros((), jnp.int32))

  def _loss(self, offset, params, begin, tokens, ids):
    """Summed loss of a chunk in all rows; logits, end state, diagnostics."""
    (logits, end), extra = self.model.apply(
        {'params': params}, tokens, begin, segment_ids=ids, fast=offset,
        mutable=['diagnostics'],
    )
    log_p = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    log_p = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    counts = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != 0)
    outputs = logits, end, extra.get('diagnostics', {})
    return -jnp.sum(jnp.where(counts, log_p, 0)), outputs

  def _chunk(self, carry, xs):
    """carry: fast weights, state where the chunk begins; xs: tokens, ids.

    And whether the chunk is complete; None: it is.
    """
    fast, begin = carry
    tokens, ids, complete = xs
    before, first = begin['place'].segment, ids[:, 0]
    starts = (first != 0) & (first != before)
    # A tree of zeros is the initial state, for every field.
    zeros = jax.tree.map(jnp.zeros_like, fast)
    fast = levels.select(starts, zeros, fast)
    held = jnp.where(first != 0, first, before)
    astray = jnp.any((ids != held[:, None]) & (ids != 0), axis=1)
    inputs = self.params, begin, tokens, ids

    def learn():
      (logits, end, diagnostics), new = continuum.chunk(
          self._loss, fast, *inputs, tokens=self.size, options=self.options
      )
      # Padding alone: nothing was read, and no level comes nearer its due.
      new = levels.select(jnp.any(ids != 0, axis=1), new, fast)
      return (new, end), logits, diagnostics

    def read():
      logits, _, diagnostics = self._loss(fast.offset, *inputs)[1]
      return (fast, begin), logits, diagnostics

    if complete is None:
      carry, logits, diagnostics = learn()
    else:
      carry, logits, diagnostics = jax.lax.cond(complete, learn, read)
    logits, poisoned = levels.poison(logits, astray, 'off_chunk_rows')
    return carry, (logits, {**diagnostics, **poisoned})
