"""The configuration of a run: frozen dataclasses, validated once, at the edge.

An experiment file (`experiments/*.py`) is data: a function `get_config()` that
returns an `ml_collections.ConfigDict` of plain values. `from_dict` turns it
into a `Config`; a name that does not exist is answered with the nearest that
does.

Where the paper leaves a choice open, the choice is a field here and its default
is argued in the comment beside it. "NL" is arXiv 2512.24695.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import types
import typing
from typing import Any, Literal


class ConfigError(ValueError):
  """A configuration that cannot be run; its message is one line."""


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ConfigError(message)


def _positive(config: Any, *names: str) -> None:
  for name in names:
    value = getattr(config, name)
    _require(
        value > 0,
        f'{type(config).__name__}.{name} must be positive; got {value}',
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
  expansion: int = 4
  projection_expansion: int = 1
  # Tokens between two updates of the frozen copy that keys, values, gates,
  # targets and gradients are computed from (Eq. 90): for the main memory, and
  # for the others. One must divide the other.
  chunk: int = 16
  projection_chunk: int = 16
  # Inner loss. 'delta': -<M(k), v^>, whose only erasure is that of DGD, the
  # exact delta rule. 'l2': 1/2 |M(k) - v^|^2 at the frozen copy, the paper's
  # literal choice, which erases twice (fixed point v^/2, eigenvalues near -1 in
  # long chunks). 'delta' by default, because it is contractive for every input.
  objective: Literal['delta', 'l2'] = 'delta'
  # The target v^ = M(v). 'bounded': v^ / sqrt(1 + |v^|^2), inside the unit
  # ball, so that no input can make a memory grow without bound; 'raw': as
  # printed; 'value': v itself for the main memory, as in Titans.
  target: Literal['bounded', 'raw', 'value'] = 'bounded'
  # Which state a query reads: 'causal', the state before its own token's write
  # (Eq. 86); 'boundary', the frozen copy (Eq. 90), blind to its own chunk.
  read: Literal['causal', 'boundary'] = 'causal'
  # Inner learning rate eta = alpha * eta_max * sigmoid(.). With unit keys and
  # eta_max <= 1 every write is a contraction. None: 1 for 'delta', and 1/chunk
  # for 'l2', where the frozen gradient counts once for each token of the chunk.
  # 0 (with retention=False) switches the memory off: nothing is ever written.
  eta_max: float | None = None
  # Which eigenvalues alpha - eta |k|^2 a write may have along its key.
  # 'positive': in [0, alpha], by eta <= alpha. 'signed': in [-1, alpha], by
  # eta <= 1 + alpha; a memory can then turn over, which counting modulo two
  # (Parity) needs. Also stable: nested/titans.py has the argument. ('l2' erases
  # twice, and so has eigenvalues down to -alpha at chunk 1 as it is.)
  eigenvalues: Literal['positive', 'signed'] = 'positive'
  # eta_max of the memories of keys, values and gates, as a share of it.
  # Smaller, so that the projections drift more slowly than what they write.
  projection_eta: float = 0.1
  # eta / eta_max at initialisation.
  eta_init: float = 0.5
  # alpha at initialisation, a token. 0.999 halves a memory in 700 tokens.
  retention_init: float = 0.999
  # Momentum S_t = mu S_{t-1} + (1 - mu) G_t on the inner gradient. Only Table 6
  # speaks of it; mu is data-dependent, momentum_init at initialisation.
  momentum: bool = True
  momentum_init: float = 0.5
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
  # Which layers of an MLP memory DGD decays along their input.
  dgd_layers: Literal['all', 'input', 'output'] = 'all'
  # A causal convolution of window 4 on each of the q, k and v streams, ahead of
  # their memories: there it stays parallel in time, and it breaks the symmetry
  # between keys and values.
  conv: bool = True
  conv_width: int = 4
  # How its taps start. 'recall': a key is made of the tokens before its own, by
  # the taps with which a query is made of its own and those before; a memory
  # then predicts from the first step on. 'identity': the token itself.
  conv_init: Literal['recall', 'identity'] = 'recall'
  # A static projection of the residual stream ahead of the memories: one for
  # each stream, one for all, or none (each head sees its slice of the stream).
  input_projection: Literal['streams', 'shared', 'none'] = 'shared'
  # Where packed documents may start. 'document': anywhere; the chunk grid
  # restarts with each, so that a document gives what it gives alone. 'aligned':
  # only at multiples of the shorter chunk (data.align sees to it), which needs
  # no rearrangement; a start elsewhere gives NaN.
  grid: Literal['document', 'aligned'] = 'document'
  # What runs the layer's tiles. 'auto': the TPU kernel on a TPU, where it keeps
  # the memories on the chip from tile to tile, and XLA elsewhere; a size that
  # the kernel does not take (see kernels/dgd) falls back to XLA with a warning.
  # 'pallas_tpu' refuses instead, and 'xla' is for comparing the two.
  implementation: Literal['auto', 'xla', 'pallas_tpu'] = 'auto'

  def __post_init__(self):
    _positive(
        self, 'expansion', 'projection_expansion', 'chunk',
        'projection_chunk', 'projection_eta',
    )
    _require(
        self.conv_width >= 2,
        f'TitansConfig.conv_width must be at least 2; got {self.conv_width}',
    )
    big, small = (
        max(self.chunk, self.projection_chunk),
        min(self.chunk, self.projection_chunk),
    )
    _require(
        big % small == 0,
        'TitansConfig.chunk and projection_chunk: one must divide the other;'
        f' got {self.chunk} and {self.projection_chunk}',
    )
    _require(
        0 < self.eta_init < 1,
        f'TitansConfig.eta_init must be in (0, 1); got {self.eta_init}',
    )
    _require(
        0.99 <= self.retention_init < 1,
        'TitansConfig.retention_init must be in [0.99, 1);'
        f' got {self.retention_init}',
    )
    _require(
        0 < self.momentum_init < 1,
        'TitansConfig.momentum_init must be in (0, 1);'
        f' got {self.momentum_init}',
    )
    _require(
        self.eigenvalues == 'positive' or self.objective == 'delta',
        "TitansConfig.eigenvalues='signed' needs objective='delta'; got"
        f' {self.objective!r}',
    )
    _require(
        self.eta_max is None or self.eta_max >= 0,
        f'TitansConfig.eta_max must not be negative; got {self.eta_max}',
    )


@dataclasses.dataclass(frozen=True)
class ContinuumConfig:
  """Continuum Memory System, NL §7.1 (Eq. 70-74): MLPs, fast to slow."""

  # Update periods, fastest level first; each must divide the next. In optimizer
  # steps under regime 'outer', in tokens under 'in_context'. One level of
  # period 1 is a Transformer's MLP.
  periods: tuple[int, ...] = (1, 4, 16)
  # How the levels are joined: Eq. 73 (chain), Eq. 72 (chain; a level restarts
  # from an initial state that the next slower level learns), Eq. 74 (sum).
  variant: Literal['sequential', 'nested', 'independent'] = 'sequential'
  # 'outer': a level is a parameter group of the outer optimizer with a period
  # of its own. 'in_context': every sequence has fast weights of its own,
  # updated on its own next-token loss, from initial states that are learned
  # outside.
  regime: Literal['outer', 'in_context'] = 'outer'
  # Outer gradient through the in-context updates.
  outer_gradient: Literal['exact', 'first_order'] = 'first_order'
  # Inner learning rate of each level ('in_context'), for the mean over the
  # chunk; 'sum' is the literal Eq. 71.
  learning_rates: tuple[float, ...] = (1e-2, 1e-2, 1e-2)
  accumulate: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self):
    object.__setattr__(self, 'periods', tuple(self.periods))
    object.__setattr__(self, 'learning_rates', tuple(self.learning_rates))
    _require(
        len(self.periods) > 0 and all(p > 0 for p in self.periods),
        f'ContinuumConfig.periods must be positive; got {self.periods}',
    )
    for fast, slow in zip(self.periods, self.periods[1:]):
      _require(
          slow % fast == 0,
          'ContinuumConfig.periods: each must divide the next, slower one;'
          f' got {slow} after {fast} in {self.periods}',
      )
    if self.regime == 'in_context':
      _require(
          len(self.learning_rates) == len(self.periods),
          'ContinuumConfig.learning_rates needs one rate a level; got'
          f' {len(self.learning_rates)} for {len(self.periods)} periods',
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A language model: the mixer, what follows it, and their sizes."""

  # The mixer of a block. hope: self-modifying Titans, hope_attention: softmax
  # attention; a CMS follows these two, and one SwiGLU MLP all others.
  # transformer: softmax attention (Transformer++; a sliding window by
  # attention_window). titans, ttt: settings of `titans`, see models/blocks.py.
  # linear_attention, retnet, deltanet, gated_deltanet: nested/linear_memory.py.
  architecture: Literal[
      'hope', 'hope_attention', 'transformer', 'titans', 'ttt',
      'linear_attention', 'retnet', 'deltanet', 'gated_deltanet', 'lstm',
  ] = 'hope'
  vocab_size: int = 256
  dim: int = 256
  layers: int = 4
  heads: int = 4
  # Total hidden width of a block's MLPs over dim; levels of a CMS share it.
  mlp_expansion: float = 4.0
  # Tokens that softmax attention looks back on; also the size of its cache.
  attention_window: int = 2048
  rope_base: float = 10_000.0
  # The self-modifying Titans and CMS of a block.
  titans: TitansConfig = TitansConfig()
  continuum: ContinuumConfig = ContinuumConfig()
  tie_embeddings: bool = False
  # Dtype of matrix products; parameters and states stay float32.
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  # What the backward pass computes anew: nothing but groups of the scan over
  # tokens ('none'); each part of a block, so that its streams and a few memory
  # states stay ('parts'); the whole block, so that its input alone stays, at
  # the price of one more forward pass through the memories ('block').
  remat: Literal['none', 'parts', 'block'] = 'block'

  def __post_init__(self):
    _positive(
        self, 'vocab_size', 'dim', 'layers', 'heads', 'mlp_expansion',
        'attention_window',
    )
    _require(
        self.dim % self.heads == 0,
        f'ModelConfig.heads must divide dim; got heads={self.heads},'
        f' dim={self.dim}',
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text comes from and how it is cut into sequences."""

  # stdlib: the source text of Python's standard library, on every machine.
  # files: `path` is a file or a glob. tfds, array_record: see data/sources.py.
  source: Literal['stdlib', 'files', 'tfds', 'array_record'] = 'stdlib'
  path: str = ''
  # Field of a record that holds the text (tfds).
  text_field: str = 'text'
  # Empty: bytes, 256 of them. Else a Hugging Face `tokenizers` JSON file.
  tokenizer: str = ''
  sequence_length: int = 512
  batch_size: int = 8
  # Documents start at multiples of this many tokens, so that the memories'
  # chunk grid meets their beginning. 1 packs without gaps.
  align: int = 16
  # Texts that take turns in each training row, 64 to 512 tokens at a time, with
  # one memory. Where a row is one text from a fresh memory, a model never meets
  # what another text left there, and reads worse with it than with none. Each
  # text is `sequence_length / interleave` tokens long. Not in the paper.
  interleave: int = 1
  # Share of documents held out for evaluation, chosen by a hash of their name.
  holdout: float = 0.05
  seed: int = 0

  def __post_init__(self):
    _positive(self, 'sequence_length', 'batch_size', 'align', 'interleave')
    _require(
        self.sequence_length % self.interleave == 0,
        f'DataConfig.interleave={self.interleave} must divide'
        f' sequence_length={self.sequence_length}',
    )
    _require(
        0 < self.holdout < 1,
        f'DataConfig.holdout must be in (0, 1); got {self.holdout}',
    )
    _require(
        self.source == 'stdlib' or bool(self.path),
        f'DataConfig.path is empty; source={self.source!r} needs a path',
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The outermost level: AdamW, warm-up and cosine, clipping, accumulation."""

  learning_rate: float = 1e-3
  final_learning_rate: float = 0.1  # as a share of learning_rate
  warmup_steps: int = 100
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.1
  clip_norm: float = 1.0
  # Micro-batches a step, each of data.batch_size / accumulate sequences.
  accumulate: int = 1

  def __post_init__(self):
    _positive(self, 'learning_rate', 'clip_norm', 'accumulate')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 takes all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    _require(
        all(s == -1 or s > 0 for s in sizes) and sizes.count(-1) <= 1,
        f'MeshConfig: sizes are positive, and one may be -1; got {sizes}',
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long to train, and what to write down on the way."""

  steps: int = 1000
  seed: int = 0
  log_every: int = 10
  eval_every: int = 200
  eval_batches: int = 16
  checkpoint_every: int = 200
  keep_checkpoints: int = 2
  # Stop (and save) after this many seconds; 0: no limit. A safety net: the
  # learning rate's schedule is that of `steps` either way.
  max_seconds: float = 0.0

  def __post_init__(self):
    _positive(
        self, 'steps', 'log_every', 'eval_every', 'eval_batches',
        'checkpoint_every', 'keep_checkpoints',
    )


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides a run."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()
  # Where checkpoints, metrics and reports go.
  workdir: str = ''

  def __post_init__(self):
    titans = self.model.titans
    shortest = min(titans.chunk, titans.projection_chunk)
    _require(
        titans.grid != 'aligned'
        or self.model.architecture not in ('hope', 'titans', 'ttt')
        or self.data.align % shortest == 0,
        "TitansConfig.grid='aligned' needs DataConfig.align to be a multiple of"
        f' the shorter chunk; got align={self.data.align}, chunk={shortest}',
    )
    _require(
        self.data.batch_size % self.optimizer.accumulate == 0,
        'OptimizerConfig.accumulate must divide DataConfig.batch_size; got'
        f' {self.optimizer.accumulate} and {self.data.batch_size}',
    )


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A Vision Transformer (NL §9.7); its image size and channels are the data's.

  The paper's two, patches of 16: dim 384, heads 6, hidden 1536 (24 M), and dim
  768, heads 12, hidden 3072 (86 M). 12 layers are not given by the paper; they
  are those of ViT-S and ViT-B, which have these sizes.
  """

  patch: int = 16
  dim: int = 384
  layers: int = 12
  heads: int = 6
  hidden: int = 1536
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    _positive(self, 'patch', 'dim', 'layers', 'heads', 'hidden')
    _require(
        self.dim % self.heads == 0,
        f'VitConfig.heads must divide dim; got heads={self.heads},'
        f' dim={self.dim}',
    )


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Labelled images: scikit-learn's digits, or any set of TFDS."""

  # digits: 1,797 of 8 x 8, each fifth held out. tfds: `path` and `heldout_path`
  # as `DataConfig.path`, name@split or folder@split, prepared as array_record.
  source: Literal['digits', 'tfds'] = 'digits'
  path: str = ''
  heldout_path: str = ''
  image_field: str = 'image'
  label_field: str = 'label'
  classes: int = 10
  # Others are scaled to this size, and cut where they are not square.
  image_size: int = 8
  channels: int = 1
  batch_size: int = 128

  def __post_init__(self):
    _positive(self, 'classes', 'image_size', 'channels', 'batch_size')
    _require(
        self.source == 'digits' or bool(self.path and self.heldout_path),
        "ImageConfig.source='tfds' needs path and heldout_path; got"
        f' {self.path!r} and {self.heldout_path!r}',
    )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """A comparison of optimizers on one task; see evals/optimizers.py."""

  # landscape: NL Eq. 53, two numbers. images: a ViT. text: a language model.
  task: Literal['landscape', 'images', 'text'] = 'landscape'
  optimizers: tuple[str, ...] = (
      'adamw', 'muon', 'adamuon', 'm3', 'dgd', 'momentum', 'delta_momentum',
      'deep_momentum',
  )
  steps: int = 300
  # Learning rates tried for each optimizer, with the seed 0, and the seeds of
  # the runs at the best of them.
  trials: int = 6
  seeds: tuple[int, ...] = (1, 2, 3)
  # Warm-up, as a share of the steps; then a cosine to a tenth.
  warmup: float = 0.1
  clip_norm: float = 1.0
  eval_batches: int = 16
  vit: VitConfig = VitConfig()
  images: ImageConfig = ImageConfig()
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()

  def __post_init__(self):
    _positive(self, 'steps', 'trials', 'clip_norm', 'eval_batches')
    _require(
        0 <= self.warmup < 1,
        f'StudyConfig.warmup must be in [0, 1); got {self.warmup}',
    )
    _require(
        0 not in self.seeds and len(set(self.seeds)) == len(self.seeds) > 0,
        'StudyConfig.seeds must differ, and 0 is that of the trials; got'
        f' {self.seeds}',
    )
    _require(
        self.images.image_size % self.vit.patch == 0 or self.task != 'images',
        'VitConfig.patch must divide ImageConfig.image_size; got'
        f' {self.vit.patch} and {self.images.image_size}',
    )


def _coerce(value: Any, kind: Any, path: str) -> Any:
  """Returns `value` as `kind`, or says what `path` would accept."""
  origin = typing.get_origin(kind)
  if dataclasses.is_dataclass(kind):
    return _build(kind, value, path)
  if origin is Literal:
    options = typing.get_args(kind)
    _require(
        value in options,
        f'{path} must be one of {", ".join(map(repr, options))}; got {value!r}',
    )
    return value
  if origin in (types.UnionType, typing.Union):
    inner = [k for k in typing.get_args(kind) if k is not type(None)]
    return None if value is None else _coerce(value, inner[0], path)
  if origin is tuple:
    _require(
        isinstance(value, (tuple, list)),
        f'{path} must be a tuple; got {value!r}',
    )
    item = typing.get_args(kind)[0]
    return tuple(_coerce(v, item, f'{path}[{i}]') for i, v in enumerate(value))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  _require(
      isinstance(value, kind) and not (kind is int and isinstance(value, bool)),
      f'{path} must be {kind.__name__}; got {value!r}',
  )
  return value


def _build(kind: type, values: Any, path: str) -> Any:
  if dataclasses.is_dataclass(values):
    return values
  _require(
      isinstance(values, Mapping) or hasattr(values, 'items'),
      f'{path or "config"} must be a group of fields; got {values!r}',
  )
  hints = typing.get_type_hints(kind)
  names = [f.name for f in dataclasses.fields(kind)]
  kwargs = {}
  for name, value in values.items():
    where = f'{path}.{name}' if path else name
    if name not in names:
      near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
      hint = f'fields: {", ".join(names)}'
      if near:
        hint = f'did you mean {near[0]!r}?'
      raise ConfigError(f'unknown field {where!r}; {hint}')
    kwargs[name] = _coerce(value, hints[name], where)
  return kind(**kwargs)


def from_dict(values: Mapping[str, Any], kind: type = Config) -> Any:
  """Builds a configuration from nested mappings (as of `ml_collections`).

  Args:
    values: what to change of the defaults.
    kind: `Config`, or another dataclass.

  Returns:
    A `kind`.

  Raises:
    ConfigError: on an unknown field (with the nearest name), a wrong type, or
      values that contradict each other; the message is one line.
  """
  return _build(kind, values, '')


def to_dict(config: Any) -> dict[str, Any]:
  """Returns the configuration as nested dicts of plain values."""
  return dataclasses.asdict(config)
