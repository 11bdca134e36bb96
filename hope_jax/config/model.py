"""Models: what stands in a block, and every choice within it."""

import dataclasses
from typing import Annotated, Any, Literal

from hope_jax.config.architectures import ARCHITECTURES, reads, require_known
from hope_jax.config.build import require
from hope_jax.config.ranges import (
    INSIDE,
    LAYERS,
    RATE_OR_ZERO,
    SHARE,
    STEPS,
    TOKENS,
    WIDTH,
    Range,
    check_ranges,
)


@dataclasses.dataclass(frozen=True)
class TitansConfig:
  """Self-modifying Titans, NL §8 (Eq. 83-91), and what Table 6 takes away."""

  # The form of every memory: a matrix z + zW, or the MLP of Eq. 89,
  # z + act(z W_in) W_out. The MLP is the paper's; the matrix is about 3 x
  # faster.
  memory: Literal['matrix', 'mlp'] = 'mlp'
  # Hidden width of an MLP memory over its input width: the main memory, and the
  # memories that make keys, values and gates. Not given by the paper.
  expansion: Annotated[int, WIDTH] = 4
  projection_expansion: Annotated[int, WIDTH] = 1
  # Tokens between two updates of the frozen copy that keys, values, gates,
  # targets and gradients are computed from (Eq. 90): for the main memory, and
  # for the others. One must divide the other.
  chunk: Annotated[int, TOKENS] = 16
  projection_chunk: Annotated[int, TOKENS] = 16
  # Inner loss. 'delta': -<M(k), v^>, whose only erasure is that of DGD, the
  # exact delta rule. 'l2': 1/2 |M(k) - v^|^2 at the frozen copy, the paper's
  # literal choice, which erases twice (fixed point v^/2, eigenvalues near -1 in
  # long chunks). 'delta' by default, because it is contractive for every input.
  objective: Literal['delta', 'l2'] = 'delta'
  # The main memory's target v^. 'value': v itself, as in Titans, made of static
  # projections and the memory of values, and so no frozen copy is needed;
  # 'raw': M(v), as printed; 'bounded': M(v) / sqrt(1 + |M(v)|^2), inside the
  # unit ball, so that no input can make a memory grow without bound, which is
  # the target of all other memories unless they are 'raw', too.
  target: Literal['bounded', 'raw', 'value'] = 'value'
  # Values of the main memory: 'unit', made of unit vectors as all that enters a
  # memory; 'length', as long as they come, v = x_v + |x_v| (M_v(z) - z) with
  # z = x_v / |x_v|, as in DeltaNet. Targets M(v) are of v / |v| then.
  values: Literal['unit', 'length'] = 'unit'
  # The query's share of what it reads, o = share q + M q: 'full', 1 (Eq. 89's
  # identity path, read literally), where a query drowns the answer; 'none', as
  # in DeltaNet, where a text's last tokens are told by memory alone, which
  # takes longer to learn; 'learned', one of each head.
  read_residual: Literal['none', 'learned', 'full'] = 'learned'
  # The learned share at the start. Nearer 1 a text is learned sooner, nearer
  # 0 recall is (experiments/mqar/WHY.md); both are well served by 1/2.
  residual_init: Annotated[float, SHARE] = 0.5
  # Which state a query reads: 'after', the state after its own token's write,
  # as in Titans and DeltaNet; 'causal', the state before it (Eq. 86);
  # 'boundary', the frozen copy (Eq. 90), blind to its own chunk.
  read: Literal['causal', 'after', 'boundary'] = 'after'
  # Inner learning rate eta = alpha * eta_max * sigmoid(.). With unit keys and
  # eta_max <= 1 every write is a contraction. None: 1 for 'delta', and 1/chunk
  # for 'l2', where the frozen gradient counts once for each token of the chunk.
  # 0 (with retention=False) switches the memory off: nothing is ever written.
  eta_max: Annotated[float | None, SHARE] = None
  # Which eigenvalues alpha - eta |k|^2 a write may have along its key.
  # 'positive': in [0, alpha], by eta <= alpha. 'signed': in [-1, alpha], by
  # eta <= 1 + alpha; a memory can then turn over, which counting modulo two
  # (Parity) needs. Also stable: nested/titans.py has the argument. ('l2' erases
  # twice, and so has eigenvalues down to -alpha at chunk 1 as it is.)
  eigenvalues: Literal['positive', 'signed'] = 'positive'
  # eta_max of the memories of keys, values and gates, as a share of it.
  # Smaller, so that the projections drift more slowly than what they write.
  projection_eta: Annotated[float, Range(0, 1, '(]')] = 0.1
  # eta / eta_max at initialisation.
  eta_init: Annotated[float, INSIDE] = 0.5
  # alpha at initialisation, a token. 0.999 halves a memory in 700 tokens. Where
  # it is rounded, what is rounded to 1: nearer 1/2, the sooner a token clears.
  retention_init: Annotated[float, Range(0.5, 1, '[)')] = 0.999
  # Momentum S_t = mu S_{t-1} + (1 - mu) G_t on the inner gradient. Only Table 6
  # speaks of it; mu is data-dependent, momentum_init at initialisation. Off: it
  # doubles the state and has not been worth it (experiments/ablation).
  momentum: bool = False
  momentum_init: Annotated[float, INSIDE] = 0.5
  # Table 6, one flag a row: plain gradient descent instead of DGD, no
  # retention, static key / value memories (read from their initial states),
  # adaptive query.
  dgd: bool = True
  retention: bool = True
  adaptive_k: bool = True
  adaptive_v: bool = True
  adaptive_q: bool = False
  # The same for the memories of eta and alpha.
  adaptive_gates: bool = True
  # What the gates eta, alpha and mu see besides what their memories make of
  # the key stream: nothing more ('key'), or a static projection of the layer's
  # input ('layer'), as in DeltaNet.
  gate_input: Literal['key', 'layer'] = 'layer'
  # Rank of what the memories of keys, values and queries add to their streams,
  # M(z) = z + (z W) P: a matrix W of so many columns is written, and P is
  # learned. 0, or a head's width and more: a memory of the main one's form.
  projection_rank: Annotated[int, Range(0, 2**20)] = 2
  # Heads, the last ones, whose memories take plain gradient steps all the same:
  # what they add up is not erased, as counting needs. Not in the paper.
  plain_heads: Annotated[int, Range(0, 2**20)] = 0
  # eta_init of these heads.
  plain_eta_init: Annotated[float, INSIDE] = 0.5
  # 'integer': keys, queries and targets are rounded to the corners of a cube,
  # rates and retention to whole numbers, trained straight through, so that what
  # a plain head adds up is exact however long the text is, and a token can
  # clear it; see nested/integers.py. Not in the paper.
  arithmetic: Literal['real', 'integer'] = 'real'
  # Which layers of an MLP memory DGD decays along their input.
  dgd_layers: Literal['all', 'input', 'output'] = 'all'
  # A causal convolution of window 4 on each of the q, k and v streams, ahead of
  # their memories: there it stays parallel in time, and it breaks the symmetry
  # between keys and values.
  conv: bool = True
  conv_width: Annotated[int, Range(2, 1024)] = 4
  # How its taps start. 'recall': a key is made of the tokens before its own, by
  # the taps with which a query is made of its own and those before; a memory
  # then predicts from the first step on. 'identity': the token itself.
  conv_init: Literal['recall', 'identity'] = 'recall'
  # A static projection of the residual stream ahead of the memories. 'equal':
  # one for each stream, behind the convolution, from one draw: so that keys
  # start as the queries of the token before, as 'recall' has it, and need not
  # stay so. 'streams': one for each, ahead of the convolution, as in DeltaNet,
  # each of its own draw. 'shared': one for all, ahead of it. 'none': each head
  # sees its slice of the residual stream.
  input_projection: Literal['equal', 'streams', 'shared', 'none'] = 'equal'
  # Where packed documents may start. 'document': anywhere; the chunk grid
  # restarts with each, so that a document gives what it gives alone. 'aligned':
  # only at multiples of the shorter chunk (data.align sees to it), which needs
  # no rearrangement; a start elsewhere gives NaN.
  grid: Literal['document', 'aligned'] = 'document'
  # What runs the layer's tiles: a name of the table in
  # kernels/dgd/implementations.py, where others are registered. 'auto': the TPU
  # kernel on a TPU, where it keeps the memories on the chip from tile to tile,
  # and XLA elsewhere; a size that the kernel does not take (see kernels/dgd)
  # falls back to XLA with a warning. 'pallas_tpu' refuses instead, and 'xla' is
  # for comparing the two. A name that is not there is refused when a model is
  # made, as the table is no part of the configuration.
  implementation: str = 'auto'

  def __post_init__(self):
    check_ranges(self)
    big, small = (
        max(self.chunk, self.projection_chunk),
        min(self.chunk, self.projection_chunk),
    )
    require(
        big % small == 0,
        'TitansConfig.chunk and projection_chunk: one must divide the other;'
        f' got {self.chunk} and {self.projection_chunk}',
    )
    least = 0.5 if self.arithmetic == 'integer' else 0.99
    require(
        least <= self.retention_init < 1,
        f'TitansConfig.retention_init must be in [{least}, 1);'
        f' got {self.retention_init}',
    )
    if self.arithmetic == 'integer':
      self._require_whole()
    require(
        self.eigenvalues == 'positive' or self.objective == 'delta',
        "TitansConfig.eigenvalues='signed' needs objective='delta'; got"
        f' {self.objective!r}',
    )

  def _require_whole(self) -> None:
    """Refuses what makes fractions of whole numbers."""
    for name, value in dict(objective='delta', eta_max=None, momentum=False,
                            memory='matrix').items():
      require(
          getattr(self, name) == value,
          f"TitansConfig.arithmetic='integer' needs {name}={value!r}; got"
          f' {getattr(self, name)!r}',
      )


# The fields of TitansConfig by which the layer is the paper's as printed, but
# for bounded targets. The defaults differ: see nested/titans.py. Experiments,
# which import nothing of this package, say them again.
PRINTED = {
    'read_residual': 'full',
    'target': 'bounded',
    'values': 'unit',
    'read': 'causal',
    'gate_input': 'key',
    'input_projection': 'shared',
    'projection_rank': 0,
    'momentum': True,
}


@dataclasses.dataclass(frozen=True)
class ContinuumConfig:
  """Continuum Memory System, NL §7.1 (Eq. 70-74): MLPs, fast to slow."""

  # Update periods, fastest level first; each must divide the next. In optimizer
  # steps under regime 'outer', in tokens under 'in_context'. One level of
  # period 1 is a Transformer's MLP.
  periods: Annotated[tuple[int, ...], STEPS] = (1, 4, 16)
  # How the levels are joined: Eq. 73 (chain), Eq. 72 (chain; a level restarts
  # from an initial state that the next slower level learns: 'in_context' only),
  # Eq. 74 (sum).
  variant: Literal['sequential', 'nested', 'independent'] = 'sequential'
  # 'outer': a level is a parameter group of the outer optimizer with a period
  # of its own. 'in_context': every sequence has fast weights of its own,
  # updated on its own next-token loss, from initial states that are learned
  # outside. The fields below belong to it.
  regime: Literal['outer', 'in_context'] = 'outer'
  # Outer gradient through the in-context updates.
  outer_gradient: Literal['exact', 'first_order'] = 'first_order'
  # Inner learning rate of each level, or one for all, for the mean over the
  # period; 'sum' is the literal Eq. 71.
  learning_rates: Annotated[tuple[float, ...], RATE_OR_ZERO] = (1e-2,)
  accumulate: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self):
    object.__setattr__(self, 'periods', tuple(self.periods))
    object.__setattr__(self, 'learning_rates', tuple(self.learning_rates))
    check_ranges(self)
    require(
        len(self.periods) > 0,
        'ContinuumConfig.periods must hold one period or more; got none',
    )
    for fast, slow in zip(self.periods, self.periods[1:]):
      require(
          slow % fast == 0,
          'ContinuumConfig.periods: each must divide the next, slower one;'
          f' got {slow} after {fast} in {self.periods}',
      )
    if self.regime == 'outer':
      self._require_outer()
      return
    if len(self.learning_rates) == 1:
      rates = self.learning_rates * len(self.periods)
      object.__setattr__(self, 'learning_rates', rates)
    require(
        len(self.learning_rates) == len(self.periods),
        'ContinuumConfig.learning_rates needs one rate a level; got'
        f' {len(self.learning_rates)} for {len(self.periods)} periods',
    )
    require(
        min(self.periods) > 1,
        "ContinuumConfig.regime='in_context' learns from predictions inside a"
        ' chunk, so the fastest of periods must be at least 2 tokens; got'
        f' {self.periods}',
    )

  def _require_outer(self) -> None:
    """Refuses what has a meaning under regime 'in_context' alone."""
    require(
        self.variant != 'nested',
        "ContinuumConfig.variant='nested' restarts fast weights, which only"
        " regime='in_context' has; got regime='outer'",
    )
    for field in dataclasses.fields(self):
      if field.name in ('outer_gradient', 'learning_rates', 'accumulate'):
        value = getattr(self, field.name)
        require(
            value == field.default,
            f"ContinuumConfig.{field.name} is read under regime='in_context'"
            f" only; got {value!r} with regime='outer'",
        )


@dataclasses.dataclass(frozen=True)
class LinearConfig:
  """Matrix memories with static projections: the rules of linear_memory.py."""

  # Which eigenvalues alpha (1 - beta |k|^2) a delta rule has along its key.
  # 'positive': beta in [0, 1]; 'signed': beta in [0, 2], which counting modulo
  # two needs (arXiv 2411.12537; `allow_neg_eigval` in fla).
  eigenvalues: Literal['positive', 'signed'] = 'positive'
  # Width of all keys, and of all values, over dim, in the published forms.
  # None: as published, 1 and 1; RetNet 1 and 2; Gated DeltaNet 0.75 and 1.5.
  key_expansion: Annotated[float | None, Range(0, 1024, '(]')] = None
  value_expansion: Annotated[float | None, Range(0, 1024, '(]')] = None

  def __post_init__(self):
    check_ranges(self)


@dataclasses.dataclass(frozen=True)
class TttConfig:
  """TTT-Linear and TTT-MLP, arXiv 2407.04620."""

  # Tokens whose gradients are taken at the state before the first of them.
  mini_batch: Annotated[int, TOKENS] = 16
  # Inner learning rate, which gates of token and position then scale. None: the
  # authors' 1 for TTT-Linear and 0.1 for TTT-MLP.
  rate: Annotated[float | None, RATE_OR_ZERO] = None

  def __post_init__(self):
    check_ranges(self)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A language model: the mixer, what follows it, and their sizes."""

  # A name of config/architectures.py: the mixer of a block and what follows it.
  # hope: self-modifying Titans, hope_attention: softmax attention, each with a
  # CMS. The baselines have one SwiGLU MLP: transformer, titans, ttt,
  # linear_attention, retnet, deltanet, gated_deltanet, lstm, srwm; and as they
  # are published (docs/baselines.md): titans_lmm, ttt_linear, ttt_mlp, and four
  # that end in _published. Fields that an architecture fixes hold its values.
  architecture: str = 'hope'
  vocab_size: Annotated[int, Range(1, 2**24)] = 256
  dim: Annotated[int, WIDTH] = 256
  layers: Annotated[int, LAYERS] = 4
  heads: Annotated[int, WIDTH] = 4
  # Total hidden width of a block's MLPs over dim; levels of a CMS share it.
  mlp_expansion: Annotated[float, Range(0, 1024, '(]')] = 4.0
  # Tokens that softmax attention looks back on; also the size of its cache.
  attention_window: Annotated[int, TOKENS] = 2048
  rope_base: Annotated[float, Range(1, 1e12)] = 10_000.0
  # What runs softmax attention. 'auto': the splash kernel on a TPU and cuDNN on
  # a GPU, for the calls that they take, and XLA elsewhere; see
  # models/attention_kernels.py. The others refuse what they do not take.
  attention_implementation: Literal['auto', 'xla', 'cudnn', 'splash'] = 'auto'
  # The self-modifying Titans and CMS of a block.
  titans: TitansConfig = TitansConfig()
  continuum: ContinuumConfig = ContinuumConfig()
  # The baselines' own.
  linear: LinearConfig = LinearConfig()
  ttt: TttConfig = TttConfig()
  tie_embeddings: bool = False
  # Dtype of matrix products; parameters and states stay float32.
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  # Of the products of a float32 model: projections, attention, logits.
  # 'highest': float32, six passes of bfloat16 on a TPU. 'high': three passes
  # there, TensorFloat-32 (10 bits after the point) on a GPU. 'default': one
  # pass, 8 bits, there, TensorFloat-32 here. A CPU has float32 alone. The
  # memories' recurrence is 'highest' whatever this says: it inverts matrices.
  precision: Literal['highest', 'high', 'default'] = 'highest'
  # What the backward pass computes anew: nothing but tiles of the scan over
  # tokens ('none'); each part of a block, so that its streams and a few memory
  # states stay ('parts'); the whole block, so that its input alone stays, at
  # the price of one more forward pass through the memories ('block').
  remat: Literal['none', 'parts', 'block'] = 'block'
  # Blocks in one turn of the loop over the layers: more to compile, and on a
  # CPU, where small models lose up to half of their time to the loop, faster.
  unroll: Annotated[int, LAYERS] = 1

  def __post_init__(self):
    require_known(self.architecture)
    for field, value in ARCHITECTURES[self.architecture].fixed.items():
      self._fix(field.split('.'), value)
    check_ranges(self)
    require(
        self.dim % self.heads == 0 or not reads(self.architecture, 'heads'),
        f'ModelConfig.heads must divide dim; got heads={self.heads},'
        f' dim={self.dim}',
    )
    require(
        self.titans.plain_heads <= self.heads,
        'TitansConfig.plain_heads must be at most ModelConfig.heads; got'
        f' {self.titans.plain_heads} of {self.heads}',
    )

  def _fix(self, path: list[str], value: Any) -> None:
    """Sets a field of this configuration, or of a group of its fields."""
    name, *inner = path
    if inner:
      (field,) = inner
      value = dataclasses.replace(getattr(self, name), **{field: value})
    object.__setattr__(self, name, value)
