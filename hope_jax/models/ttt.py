"""TTT and Titans' neural memory as mixers, as their authors publish them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.models.attention import rotate
from hope_jax.models.layers import (
  CausalConv,
  Mixer,
  gate,
  in_tiles,
  partitioned,
  split_by_head,
)
from hope_jax.models.linear_memory import l2_normalized
from hope_jax.models.mixers import MemoryMixer
from hope_jax.models.packing import Packing
from hope_jax.nested import ttt
from hope_jax.sharding import constrain
from hope_jax.types import Array, PyTree


def _memory(
    module: Mixer, widths: tuple[int, ...], stds: tuple[float, ...], bias: bool
) -> ttt.Weights:
  """Declares a memory's initial weights, [H, widths[i] (+ 1), widths[i + 1]].

  Args:
    module: the mixer that owns it.
    widths: of the input, the hidden layers and the output.
    stds: standard deviation of each matrix.
    bias: whether each has a row more, the bias, zero at first.
  """

  def leaf(i, std):
    def init(rng, shape, dtype):
      drawn = shape[0], widths[i], shape[2]
      drawn = std * jax.random.normal(rng, drawn, dtype)
      return jnp.pad(drawn, ((0, 0), (0, shape[1] - widths[i]), (0, 0)))

    return module.param(
        f'memory_{i}',
        partitioned(init, 'heads', 'memory', 'memory'),
        (module.config.heads, widths[i] + bias, widths[i + 1]),
    )

  return tuple(leaf(i, std) for i, std in enumerate(stds))


class Ttt(Mixer):
  """TTT-Linear or TTT-MLP (arXiv 2407.04620; ttt-lm-jax at its defaults).

      z = x W_qk   q = R_i (conv_q(z) + b_q)   k = R_i (conv_k(z) + b_k)
      v = x W_v    eta = rate / K sigmoid(x w + b)
      tau_i = max(0, 1 / (i + 1) + learned_i)
      y = (gelu(x W_g) * LN(o)) W_o        one norm over all heads

  with R_i the rotation by i, the token's place in its mini-batch; o as in
  `nested.ttt`, from a linear memory with bias, or one of two layers.

  Attributes:
    expansion: hidden width of the memory over K; None: it is linear.
    rate: inner learning rate, where the configuration has none.
  """

  # Flax's types do not see that the field of `Mixer` before goes by keyword.
  expansion: int | None  # pyright: ignore[reportGeneralTypeIssues]
  rate: float  # pyright: ignore[reportGeneralTypeIssues]

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'memory': TttState, 'tail': of the convolutions} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    model = self.config
    chunk = model.ttt.mini_batch
    position = packing.position
    if position is None:
      position = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    place = position % chunk
    if state is None:
      before = x.shape[0], model.titans.conv_width - 1, 2 * model.dim
      tail = jnp.zeros(before, jnp.dtype(model.dtype))
    else:
      tail = state['tail']
    tail, (q, k, v) = in_tiles(
        Ttt._streams, self, tail, (x, packing.position, packing.present)
    )
    q, k = (rotate(y, place, model.rope_base) for y in (q, k))
    o, memory, diagnostics = ttt.layer(
        self.initial(),
        ttt.Tokens(q, k, v, self.gates(x, place)),
        None if state is None else state['memory'],
        mixes=ttt.ttt_mixes,
        chunk=chunk,
        frozen=False,
        norm=ttt.Norm(*self.norm('norm', (model.heads, 1, q.shape[-1]))),
        starts=packing.starts,
        present=packing.present,
        precision='bf16' if model.dtype == 'bfloat16' else 'float32',
    )
    self.tell(diagnostics)
    y = in_tiles(Ttt._output, self, None, (x, o))[1]
    return y, {'memory': split_by_head(memory), 'tail': tail}

  def _streams(self, tail, xs):
    """carry: the tail; xs: x and the packing's position and present."""
    x, position, present = xs
    model = self.config
    shared = self.into_heads(model.dim, 'project_qk')(x)
    conv = CausalConv(
        model.titans.conv_width, nn.initializers.lecun_normal(), streams=2,
        name='conv',
    )
    qk, tail = conv(
        jnp.concatenate([shared, shared], axis=-1), tail, position, present
    )
    bias = self.param(
        'bias_conv', partitioned(nn.initializers.zeros_init(), 'heads'),
        qk.shape[-1:],
    )
    qk = qk + bias.astype(qk.dtype)
    v = self.into_heads(model.dim, 'project_v')(x)
    shape = *x.shape[:2], model.heads, -1
    return tail, tuple(
        constrain(
            y.reshape(shape).astype(jnp.float32),
            *('batch', 'time', 'heads', 'head_dim'),
        )
        for y in (*jnp.split(qk, 2, axis=-1), v)
    )

  def gates(self, x: Array, place: Array) -> ttt.TttGates:
    """Rates of the tokens of x [B, T, D], `place` [B, T] in a mini-batch."""
    model = self.config
    chunk, head_dim = model.ttt.mini_batch, model.dim // model.heads
    rate = self.rate if model.ttt.rate is None else model.ttt.rate
    logit = gate(self, x, 'eta', bias=0.0)
    learned = self.param(
        'tau', partitioned(nn.initializers.zeros_init(), None), (chunk,)
    )
    places = jnp.arange(1, chunk + 1, dtype=learned.dtype)
    tau = jnp.maximum(1 / places + learned, 0)
    per_head = lambda y: jnp.broadcast_to(y[..., None], logit.shape)
    return ttt.TttGates(
        eta=rate / head_dim * nn.sigmoid(logit),
        tau=per_head(tau[place]),
        closes=per_head((place == chunk - 1).astype(logit.dtype)),
    )

  def initial(self) -> ttt.Weights:
    """Declares the memory that documents start from; its output is small."""
    model = self.config
    width = model.dim // model.heads
    if self.expansion is None:
      return _memory(self, (width, width), (0.02,), bias=True)
    small = 0.02 / math.sqrt(2 * model.layers)
    widths = width, self.expansion * width, width
    return _memory(self, widths, (0.02, small), bias=True)

  def norm(self, name: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Declares the scale and the shift of a LayerNorm; scale 1 is kept as 0."""
    axes = ('heads', *(None,) * (len(shape) - 1))
    init = partitioned(nn.initializers.zeros_init(), *axes)
    scale = self.param(f'{name}_scale', init, shape)
    return 1 + scale, self.param(f'{name}_bias', init, shape)

  def _output(self, carry, xs):
    """carry: nothing; xs: x and o."""
    x, o = xs
    model = self.config
    norm = ttt.Norm(*self.norm('norm_out', (model.dim,)))
    o = ttt.layer_norm(o.reshape(x.shape), norm).astype(jnp.dtype(model.dtype))
    o = nn.gelu(self.into_heads(model.dim, 'gate')(x)) * o
    return carry, self.out_of_heads()(o)


class TitansMemory(MemoryMixer):
  """Titans (LMM): a memory with momentum and retention (arXiv 2501.00663).

  Streams of their own, a convolution and SiLU; unit queries and keys; rates
  theta, momentum and retention are sigmoids of x, a number a head; o as in
  `nested.ttt`, from f of one matrix or two, without norm or residual path;
  then a norm, a gate and a projection (its Section 4.4). Not given by the
  paper: how gates and memory start, and the activation (GELU here).
  """

  @nn.compact
  def __call__(
      self, x: Array, state: PyTree | None, packing: Packing
  ) -> tuple[Array, PyTree]:
    """Mixes tokens.

    Args:
      x: normalised residual stream, [B, T, D].
      state: {'memory': TttState, 'tail': of the convolution} or None.
      packing: document structure of the batch.

    Returns:
      [B, T, D] and the new state.
    """
    model = self.config
    tail = None if state is None else state['tail']
    (q, k, v), tail = self.streams(x, tail, packing)
    o, memory, diagnostics = ttt.layer(
        self.initial(),
        ttt.Tokens(l2_normalized(q), l2_normalized(k), v, self.gates(x)),
        None if state is None else state['memory'],
        mixes=ttt.titans_mixes,
        chunk=model.titans.chunk,
        frozen=True,
        starts=packing.starts,
        present=packing.present,
        precision='bf16' if model.dtype == 'bfloat16' else 'float32',
    )
    self.tell(diagnostics)
    return self.output(x, o), {'memory': split_by_head(memory), 'tail': tail}

  def gates(self, x: Array) -> ttt.TitansGates:
    """Rates, momentum and retention of the tokens of x [B, T, D]."""
    config = self.config.titans
    most = config.eta_max
    if most is None:
      # 1 for a matrix, which unit keys keep stable. An MLP at 1 diverges on
      # noise within 20 tokens; 2 / K is the rate of a loss that is the mean
      # over the head's width, as titans-pytorch has it.
      width = self.config.dim // self.config.heads
      most = (1 if config.memory == 'matrix' else 2 / width) / config.chunk

    def logit(name, start):
      bias = math.log(start / (1 - start))
      return gate(self, x, name, bias=bias, std=0.02)

    return ttt.TitansGates(
        theta=most * nn.sigmoid(logit('theta', config.eta_init)),
        log_mu=nn.log_sigmoid(logit('mu', config.momentum_init)),
        log_alpha=nn.log_sigmoid(logit('alpha', config.retention_init)),
    )

  def initial(self) -> ttt.Weights:
    """Declares the memory that documents start from; its output is small."""
    model = self.config
    width = model.dim // model.heads
    if model.titans.memory == 'matrix':
      return _memory(self, (width, width), (0.02,), bias=False)
    widths = width, model.titans.expansion * width, width
    return _memory(self, widths, (width**-0.5, 0.02), bias=False)
