"""How arrays lie in HBM and how they are cut into the blocks of a kernel.

Vectors [B, T, H, K] are read as [B, T, H * K], heads along lanes, where K is a
multiple of the 128 lanes: what a Dense layer has written is read without a
transpose in HBM. Narrower heads go through [B, H, T, K]. Numbers a token,
[B, T, H], become rows of C lanes, as a column in HBM would be padded 128-fold.
Matrices [B, H, ., .] stay as they are.

The grid is (batch blocks i, head blocks j, tiles n); R rows (batch and head) of
a block are one leading axis inside the kernel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.experimental import pallas as pl
import jax.numpy as jnp

from hope_jax.types import Array


class Plan(NamedTuple):
  """How a scan is laid out on the machine."""

  tile: int  # C, tokens a step
  rows: int  # rows of the batch in a block
  heads: int  # heads in a block
  save_states: str  # 'hbm' or 'recompute'
  tiles_per_call: int  # a scan of kernel calls does the rest
  vmem_limit_bytes: int | None
  interpret: Any  # False, True or pltpu.InterpretParams


class Vectors:
  """[B, T, H, K] in HBM, [R, C, K] in the kernel."""

  def __init__(self, plan: Plan, width: int):
    """`width` is K."""
    self.plan = plan
    self.width = width
    self.on_lanes = width % 128 == 0

  def to_hbm(self, x: Array) -> Array:
    """As the kernel reads it; `from_hbm` is the inverse."""
    if self.on_lanes:
      return x.reshape(*x.shape[:2], -1)
    return jnp.swapaxes(x, 1, 2)

  def from_hbm(self, x: Array) -> Array:
    """As the caller has it."""
    if self.on_lanes:
      return x.reshape(*x.shape[:2], -1, self.width)
    return jnp.swapaxes(x, 1, 2)

  def shape(self, b: int, t: int, h: int) -> tuple[int, ...]:
    """What `to_hbm` makes of [B, T, H, K]."""
    if self.on_lanes:
      return b, t, h * self.width
    return b, h, t, self.width

  def spec(self, when: Callable) -> pl.BlockSpec:
    """The block of tile when(n)."""
    p = self.plan
    if self.on_lanes:
      block = (p.rows, p.tile, p.heads * self.width)
      return pl.BlockSpec(block, lambda i, j, n: (i, when(n), j))
    block = (p.rows, p.heads, p.tile, self.width)
    return pl.BlockSpec(block, lambda i, j, n: (i, j, when(n), 0))

  def load(self, ref) -> Array:
    """A block as [R, C, K]."""
    x, p = ref[...], self.plan
    if self.on_lanes and p.heads > 1:
      x = jnp.stack(jnp.split(x, p.heads, axis=-1), axis=1)
    return x.reshape(p.rows * p.heads, p.tile, self.width)

  def store(self, ref, x: Array) -> None:
    """Writes [R, C, K] to a block."""
    p = self.plan
    x = x.astype(ref.dtype).reshape(p.rows, p.heads, p.tile, self.width)
    if not self.on_lanes:
      ref[...] = x
      return
    for h in range(p.heads):
      ref[:, :, h * self.width : (h + 1) * self.width] = x[:, h]


class Numbers:
  """[B, T, H] in HBM, [R, C] in the kernel; methods as of `Vectors`."""

  def __init__(self, plan: Plan):
    self.plan = plan

  def to_hbm(self, x: Array) -> Array:
    """[B, T, H] -> [blocks of B, N, blocks of H, R, C]."""
    p = self.plan
    b, t, h = x.shape
    x = x.reshape(b // p.rows, p.rows, t // p.tile, p.tile, h // p.heads, -1)
    x = x.transpose(0, 2, 4, 1, 5, 3)
    return x.reshape(*x.shape[:3], p.rows * p.heads, p.tile)

  def from_hbm(self, x: Array) -> Array:
    """The inverse of `to_hbm`."""
    p = self.plan
    x = x.reshape(*x.shape[:3], p.rows, p.heads, p.tile)
    x = x.transpose(0, 3, 1, 5, 2, 4)
    b, h = x.shape[0] * p.rows, x.shape[4] * p.heads
    return x.reshape(b, -1, h)

  def shape(self, b: int, t: int, h: int) -> tuple[int, ...]:
    """What `to_hbm` makes of [B, T, H]."""
    p = self.plan
    blocks = b // p.rows, t // p.tile, h // p.heads
    return *blocks, p.rows * p.heads, p.tile

  def spec(self, when: Callable) -> pl.BlockSpec:
    """The block of tile when(n)."""
    p = self.plan
    block = (None, None, None, p.rows * p.heads, p.tile)
    return pl.BlockSpec(block, lambda i, j, n: (i, when(n), j, 0, 0))

  def load(self, ref) -> Array:
    """A block as [R, C]."""
    return ref[...]

  def store(self, ref, x: Array) -> None:
    """Writes [R, C] to a block."""
    ref[...] = x.astype(ref.dtype)


class Matrix:
  """[B, H, ., .] in HBM, [R, ., .] in the kernel, the same at every tile."""

  def __init__(self, plan: Plan, shape: tuple[int, ...], shared: bool = False):
    """`shared`: the array is [1, H, ., .], one for all rows of the batch."""
    self.plan = plan
    self.matrix = shape
    self.shared = shared

  def spec(self, gradient: bool = False) -> pl.BlockSpec:
    """The block; every block of rows has its own gradient."""
    p = self.plan
    rows = 1 if self.shared else p.rows
    fixed = self.shared and not gradient
    return pl.BlockSpec(
        (rows, p.heads, *self.matrix),
        lambda i, j, n: (0 if fixed else i, j, *(0 for _ in self.matrix)),
    )

  def saved_spec(self, when: Callable) -> pl.BlockSpec:
    """Of this matrix at every tile, [N, B, H, ., .]."""
    p = self.plan
    block = (None, p.rows, p.heads, *self.matrix)
    zeros = tuple(0 for _ in self.matrix)
    return pl.BlockSpec(block, lambda i, j, n: (when(n), i, j, *zeros))

  def load(self, ref) -> Array:
    """A block as [R, ., .], or [heads, ., .] of a shared matrix."""
    return ref[...].reshape(-1, *self.matrix)

  def spread(self, x: Array) -> Array:
    """What `load` gives, as [R, ., .]."""
    if not self.shared or self.plan.rows == 1:
      return x
    return jnp.concatenate([x] * self.plan.rows)

  def store(self, ref, x: Array) -> None:
    """Writes what `load` gives to a block."""
    ref[...] = x.reshape(ref.shape).astype(ref.dtype)
