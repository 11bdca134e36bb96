"""Optimizers: optax transformations, and the levels they act on."""

from hope_jax.optim.deep_momentum import deep_momentum, scale_by_deep_momentum
from hope_jax.optim.dgd import (
  delta_dot,
  delta_dot_general,
  dgd,
  scale_by_dgd,
)
from hope_jax.optim.frequency import at_frequency, nested, update_counts
from hope_jax.optim.m3 import m3, scale_by_m3
from hope_jax.optim.matrices import (
  describe,
  dimension_numbers,
  matrix_labels,
)
from hope_jax.optim.momentum import (
  delta_momentum,
  feature_momentum,
  nonlinear_momentum,
  preconditioned_momentum,
  scale_by_delta_momentum,
  scale_by_feature_momentum,
  scale_by_nonlinear_momentum,
  scale_by_preconditioned_momentum,
)
from hope_jax.optim.multi_scale import (
  multi_scale_momentum,
  scale_by_multi_scale_momentum,
)
from hope_jax.optim.muon import adamuon, muon, scale_by_adamuon, scale_by_muon
from hope_jax.optim.newton_schulz import orthogonalize
from hope_jax.optim.precision import in_float32

__all__ = [
    'adamuon',
    'at_frequency',
    'deep_momentum',
    'delta_dot',
    'delta_dot_general',
    'delta_momentum',
    'describe',
    'dgd',
    'dimension_numbers',
    'feature_momentum',
    'in_float32',
    'm3',
    'matrix_labels',
    'multi_scale_momentum',
    'muon',
    'nested',
    'nonlinear_momentum',
    'orthogonalize',
    'preconditioned_momentum',
    'scale_by_adamuon',
    'scale_by_deep_momentum',
    'scale_by_delta_momentum',
    'scale_by_dgd',
    'scale_by_feature_momentum',
    'scale_by_m3',
    'scale_by_multi_scale_momentum',
    'scale_by_muon',
    'scale_by_nonlinear_momentum',
    'scale_by_preconditioned_momentum',
    'update_counts',
]
