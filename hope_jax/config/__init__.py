"""The configuration of a run: frozen dataclasses, validated once, at the edge.

An experiment file (`experiments/*.py`) is data: a function `get_config()` that
returns an `ml_collections.ConfigDict` of plain values. `from_dict` turns it
into a `Config`; a name that does not exist is answered with the nearest that
does.

Where the paper leaves a choice open, the choice is a field here and its default
is argued in the comment beside it. "NL" is arXiv 2512.24695.
"""

from hope_jax.config.build import ConfigError
from hope_jax.config.data import DataConfig
from hope_jax.config.model import (
    PRINTED,
    ContinuumConfig,
    LinearConfig,
    ModelConfig,
    TitansConfig,
    TttConfig,
)
from hope_jax.config.optimizer import OptimizerConfig
from hope_jax.config.study import ImageConfig, StudyConfig, VitConfig
from hope_jax.config.train import (
    Config,
    MeshConfig,
    TrainConfig,
    from_dict,
    to_dict,
)

__all__ = (
    'PRINTED', 'Config', 'ConfigError', 'ContinuumConfig', 'DataConfig',
    'ImageConfig', 'LinearConfig', 'MeshConfig', 'ModelConfig',
    'OptimizerConfig', 'StudyConfig', 'TitansConfig', 'TrainConfig',
    'TttConfig', 'VitConfig', 'from_dict', 'to_dict',
)
