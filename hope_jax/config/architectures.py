"""The architectures: one entry says all that sets one apart from the others.

A new one is a mixer (a Flax module, see `models.blocks`) and an entry:

    architectures.register('mine', Architecture('my_package.mixer:Mixer'))

Pure data: a mixer's module is imported when a model is built.
"""

from collections.abc import Mapping
import operator
from typing import Any, Literal, NamedTuple

from hope_jax.config.build import flat, nearest, require


class Architecture(NamedTuple):
  """What a block of this architecture is."""

  # The Flax module that mixes tokens, or where it is: 'package.module:Class'.
  mixer: str | type
  # Its attributes besides `config`.
  options: Mapping[str, Any] = {}
  # Fields of ModelConfig, dotted, and the values that the name stands for.
  fixed: Mapping[str, Any] = {}
  # Of the fields, or groups of them, that only some architectures read, its
  # own. A field that no entry names is read by all.
  reads: tuple[str, ...] = ()
  # Fields in groups that it reads that do nothing beside what it fixes.
  ignores: tuple[str, ...] = ()
  # A Continuum Memory System follows the mixer; else one SwiGLU MLP.
  levels: bool = False
  # It sees no further back than ModelConfig.attention_window.
  window: bool = False
  # Fields of ModelConfig: its chunks, where their grid restarts with each
  # document (`nested.levels`) and so has room for some number of them.
  chunks: tuple[str, ...] = ()


_TITANS = 'hope_jax.models.mixers:SelfModifyingTitans'
_CHUNKS = 'titans.chunk', 'titans.projection_chunk'
_ATTENTION = 'hope_jax.models.attention:Attention'
_ATTENTION_READS = (
    'heads', 'attention_window', 'attention_implementation', 'rope_base',
)

# Static projections and gates, targets v_t and plain gradient descent on the L2
# loss: Hope's layer, like Titans with retention and momentum, and without them
# like a TTT layer with an MLP. 'titans_lmm' and 'ttt_mlp' are the published
# layers; docs/baselines.md has what sets these apart from them.
_STATIC = {
    'titans.adaptive_k': False,
    'titans.adaptive_v': False,
    'titans.adaptive_q': False,
    'titans.adaptive_gates': False,
    'titans.target': 'value',
    'titans.objective': 'l2',
    'titans.dgd': False,
    'titans.read': 'causal',
    'titans.read_residual': 'full',
    'titans.values': 'unit',
    'titans.gate_input': 'key',
    'titans.projection_rank': 0,
}


# What is read where memories adapt or decay along their inputs.
_OF_ADAPTING = (
    'titans.projection_eta',
    'titans.dgd_layers',
    'titans.eigenvalues',
    'titans.plain_heads',
    'titans.plain_eta_init',
    'titans.arithmetic',
)


# Of the rules that erase.
_OF_DELTA = ('linear.eigenvalues',)


def _linear(rule: str, *reads: str) -> Architecture:
  """A rule of `nested.linear_memory`, its streams made as those of Titans."""
  return Architecture(
      'hope_jax.models.linear_memory:LinearMemory',
      options={'rule': rule},
      fixed={
          'titans.input_projection': 'streams',
          'titans.conv_init': 'identity',
      },
      reads=(
          'heads', 'titans.conv', 'titans.conv_width', 'titans.implementation',
          *reads,
      ),
  )


def _published(
    rule: str,
    *reads: str,
    key_expansion: float = 1.0,
    value_expansion: float = 1.0,
    conv: bool = False,
    output: Literal['plain', 'norm', 'gated'],
) -> Architecture:
  """The layer of a rule as its authors publish it, `PublishedMemory`."""
  return Architecture(
      'hope_jax.models.linear_memory:PublishedMemory',
      options=dict(
          rule=rule, key_expansion=key_expansion,
          value_expansion=value_expansion, conv=conv, output_form=output,
      ),
      reads=(
          'heads', 'linear.key_expansion', 'linear.value_expansion',
          'titans.implementation', *(['titans.conv_width'] if conv else []),
          *reads,
      ),
  )


def _ttt(*, expansion: int | None, rate: float) -> Architecture:
  """A TTT layer as published; `expansion` is that of an MLP's hidden width."""
  return Architecture(
      'hope_jax.models.ttt:Ttt',
      options=dict(expansion=expansion, rate=rate),
      reads=('heads', 'ttt', 'rope_base', 'titans.conv_width'),
      chunks=('ttt.mini_batch',),
  )


ARCHITECTURES: dict[str, Architecture] = {
    'hope': Architecture(
        _TITANS, reads=('heads', 'titans', 'continuum'), levels=True,
        chunks=_CHUNKS,
    ),
    'hope_attention': Architecture(
        _ATTENTION,
        reads=(*_ATTENTION_READS, 'continuum'),
        levels=True,
        window=True,
    ),
    # Transformer++ with a norm of queries and keys.
    'transformer': Architecture(
        _ATTENTION,
        reads=_ATTENTION_READS,
        window=True,
    ),
    'titans': Architecture(
        _TITANS,
        fixed=_STATIC | {'titans.momentum': True},
        reads=('heads', 'titans'), ignores=_OF_ADAPTING, chunks=_CHUNKS,
    ),
    'ttt': Architecture(
        _TITANS,
        fixed=_STATIC
        | {
            'titans.memory': 'mlp',
            'titans.retention': False,
            'titans.momentum': False,
        },
        reads=('heads', 'titans'),
        ignores=(
            *_OF_ADAPTING, 'titans.retention_init', 'titans.momentum_init'
        ),
        chunks=_CHUNKS,
    ),
    'linear_attention': _linear('linear_attention'),
    'retnet': _linear('retnet', 'rope_base'),
    'deltanet': _linear('deltanet', *_OF_DELTA),
    'gated_deltanet': _linear('gated_deltanet', *_OF_DELTA),
    # The published forms; docs/baselines.md has papers, code and differences.
    'linear_attention_published': _published(
        'linear_attention', output='plain'
    ),
    'retnet_published': _published(
        'retnet', 'rope_base', value_expansion=2.0, output='gated'
    ),
    'deltanet_published': _published(
        'deltanet', *_OF_DELTA, conv=True, output='norm'
    ),
    'gated_deltanet_published': _published(
        'gated_deltanet', *_OF_DELTA, key_expansion=0.75, value_expansion=1.5,
        conv=True, output='gated',
    ),
    'ttt_linear': _ttt(expansion=None, rate=1.0),
    'ttt_mlp': _ttt(expansion=4, rate=0.1),
    'titans_lmm': Architecture(
        'hope_jax.models.ttt:TitansMemory',
        fixed={
            'titans.input_projection': 'streams',
            'titans.conv_init': 'identity',
        },
        reads=(
            'heads', 'titans.conv', 'titans.conv_width', 'titans.memory',
            'titans.expansion', 'titans.chunk', 'titans.eta_max',
            'titans.eta_init', 'titans.retention_init', 'titans.momentum_init',
        ),
        chunks=('titans.chunk',),
    ),
    'lstm': Architecture('hope_jax.models.lstm:Lstm'),
    'srwm': Architecture('hope_jax.models.srwm:Srwm', reads=('heads',)),
}


_OURS = frozenset(ARCHITECTURES)


def register(name: str, architecture: Architecture) -> None:
  """Adds an architecture, which `model.architecture` may then name.

  Again under the same name takes the place of the first: an experiment file
  that registers one may be loaded twice.

  Raises:
    ConfigError: the name is one of the package's own.
  """
  require(name not in _OURS, f'architecture {name!r} is there already')
  ARCHITECTURES[name] = architecture


def require_known(name: str) -> None:
  """Raises a ConfigError with the nearest name where there is no `name`."""
  hint = nearest(name, ARCHITECTURES, 'known')
  require(
      name in ARCHITECTURES,
      f'unknown model.architecture {name!r}; {hint} (one of your own: give the'
      ' file that registers it, too, as --config=FILE)',
  )


def start_of(config: Any) -> tuple[int, str]:
  """Returns where documents of a model's rows have to start.

  Args:
    config: a ModelConfig.

  Returns:
    The number of tokens of which a start is a multiple (1: anywhere), and what
    a row with another start is called (`nested.levels.REASONS`).
  """
  entry = ARCHITECTURES[config.architecture]
  if entry.levels and config.continuum.regime == 'in_context':
    return config.continuum.periods[0], 'off_chunk_rows'
  if reads(config.architecture, 'titans.grid') and (
      config.titans.grid == 'aligned'
  ):
    return _shortest(config), 'unaligned_rows'
  return 1, ''


def chunk_of(config: Any) -> int:
  """Returns the tokens of a tile of a model's grid, 1 where all rows fit.

  Args:
    config: a ModelConfig.
  """
  return _shortest(config) if start_of(config)[0] == 1 else 1


def _shortest(config: Any) -> int:
  fields = ARCHITECTURES[config.architecture].chunks
  return min((operator.attrgetter(f)(config) for f in fields), default=1)


def _within(field: str, group: str) -> bool:
  return f'{field}.'.startswith(f'{group}.')


def reads(name: str, field: str) -> bool:
  """Returns whether an architecture reads a field.

  Args:
    name: the architecture.
    field: dotted field of ModelConfig, or a group of them, which is read if
      any of its fields is. What is fixed is read as well.
  """
  entry = ARCHITECTURES[name]
  if field in entry.ignores:
    return False
  own = (*entry.reads, *entry.fixed)
  if any(_within(field, r) or _within(r, field) for r in own):
    return True
  some = (r for entry in ARCHITECTURES.values() for r in entry.reads)
  return not any(_within(field, r) or _within(r, field) for r in some)


def only_read(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of ModelConfig that an architecture is free to read.

  For what several architectures share, such as the file of an experiment.

  Args:
    name: the architecture.
    fields: in nested groups; a group of which nothing is left is left out.
  """
  require_known(name)
  return _only_read(name, fields, '')


def _only_read(name: str, fields: Mapping[str, Any], group: str) -> dict:
  kept = {}
  for part, value in fields.items():
    field = f'{group}{part}'
    if isinstance(value, Mapping):
      value = _only_read(name, value, f'{field}.')
      if value:
        kept[part] = value
    elif reads(name, field) and field not in ARCHITECTURES[name].fixed:
      kept[part] = value
  return kept


def require_read(config: Any, given: Mapping[str, Any]) -> None:
  """Refuses settings that the architecture would ignore or overrule.

  Args:
    config: the ModelConfig that was built of them.
    given: the fields that were given for it, in nested groups or by dotted
      name, with their values.

  Raises:
    ConfigError: the architecture does not read one of them, or fixes it to
      another value.
  """
  name = config.architecture
  fixed = ARCHITECTURES[name].fixed
  for field, value in flat(given):
    require(
        reads(name, field),
        f'model.{field} is not read by architecture {name!r}; leave it out',
    )
    require(
        field not in fixed or fixed[field] == value,
        f'model.{field} is {fixed.get(field)!r} in architecture {name!r}; got'
        f' {value!r}; leave it out',
    )
