"""Whether a scan over tiles can run as a TPU kernel, and how it is laid out."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.devices import device
from hope_jax.kernels.dgd.tpu import block_sizes
from hope_jax.kernels.dgd.tpu.layouts import Plan
from hope_jax.types import PyTree

WIDTHS = (64, 128, 256)
TILES = range(16, 129, 16)


class Sizes(NamedTuple):
  """What a scan holds in VMEM for one row of the batch and one head."""

  tile: int  # C
  # Widths of all that is a vector a token: inputs, outputs, and products that
  # are as wide as the state.
  vectors: tuple[int, ...]
  matrices: PyTree  # params and carry, leaves [., ., rows, columns]
  itemsize: int = 4  # bytes of an element of a vector
  save_states: str = 'auto'  # or 'hbm' or 'recompute'
  interpret: Any = False

  def for_blocks(self) -> dict[str, Any]:
    """The arguments of `block_sizes.choose` that do not change with B, T, H."""
    return dict(
        tile=self.tile,
        vectors=sum(block_sizes.lanes(width) for width in self.vectors),
        matrices=sum(
            math.prod(x.shape[2:-1]) * block_sizes.lanes(x.shape[-1])
            for x in jax.tree.leaves(self.matrices)
        ),
        itemsize=self.itemsize,
        save_states=self.save_states,
    )


def plan(sizes: Sizes, *, batch: int, length: int, heads: int) -> Plan:
  """The layout of a scan on the device at hand; see `block_sizes.choose`."""
  blocks = block_sizes.choose(
      block_sizes.chip(device()[1]), batch=batch, length=length, heads=heads,
      **sizes.for_blocks(),
  )
  return Plan(
      tile=sizes.tile, **blocks._asdict(), interpret=sizes.interpret
  )


def obstacle(
    key_dim: int, value_dim: int, tile: int, dtype: Any, interpret: Any
) -> str | None:
  """Why no kernel can run this, in one line; None: one can."""
  platform, kind = device()
  if platform != 'tpu' and not interpret:
    return (
        f'needs a TPU and this is {kind!r} ({platform}); interpret=True'
        ' emulates one'
    )
  if key_dim not in WIDTHS or value_dim > WIDTHS[-1]:
    return (
        f'K must be in {WIDTHS} and V at most {WIDTHS[-1]}; got K={key_dim},'
        f' V={value_dim}'
    )
  if tile not in TILES:
    return f'tile must be a multiple of 16, at most 128; got tile={tile}'
  if jnp.dtype(dtype).itemsize > 4:
    return f'the state must be float32; got {jnp.dtype(dtype).name}'
  return None


def too_large(sizes: Sizes) -> str | None:
  """Why not even one row of a scan fits VMEM, in one line; None: it does."""
  try:
    plan(sizes, batch=1, length=1, heads=1)
  except ValueError as error:
    return f'does not fit VMEM: {error}'
  return None
