"""What an implementation is told of a self-modifying layer."""

from typing import Any, NamedTuple

from hope_jax.types import PyTree


class Layer(NamedTuple):
  """The sizes of a layer whose tiles are to be scanned."""

  key_dim: int  # K, the width of all streams and outputs
  # Columns that a token's product with the state has: the first matrices of all
  # memories side by side.
  state_dim: int
  tile: int  # C
  dtype: Any  # of the streams
  matrices: PyTree  # params and carry, leaves [B or 1, H, rows, columns]
  interpret: Any
