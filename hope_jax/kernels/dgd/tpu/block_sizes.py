"""Block sizes of the TPU kernels: a VMEM formula, and a table that was tuned.

The table has, for each chip, what takes the fewest bundles forward and backward
in benchmarks/results/tpu_tuning.json (`benchmarks/tpu_schedule.py --tune`), and
the smallest of what is within 1 % of it; no TPU has timed it.
"""

from typing import NamedTuple

MIB = 2**20


class Chip(NamedTuple):
  """What a kernel needs to know of a TensorCore."""

  vmem_bytes: int  # capacity, from jax.experimental.pallas.tpu.get_tpu_info
  # Rows (batch and head) of a block at K = V = C = 128. A row alone is a chain
  # of small products that wait for one another; many rows fill the waits.
  rows: int
  tile: int  # C of a recurrence that does not say


# By `device_kind`.
CHIPS = {
    'TPU v4': Chip(16 * MIB, 2, 64),
    'TPU v5 lite': Chip(128 * MIB, 16, 128),
    'TPU v5': Chip(64 * MIB, 8, 128),
    'TPU v6 lite': Chip(128 * MIB, 16, 128),
    'TPU7x': Chip(64 * MIB, 8, 128),
}
# What an interpreted kernel is laid out for.
DEFAULT_CHIP = CHIPS['TPU v6 lite']
# The rest is for what the compiler keeps for itself.
VMEM_SHARE = 0.7
# The share of VMEM that a stack of recomputed carries may fill.
STACK_SHARE = 0.4


def chip(device_kind: str) -> Chip:
  """The chip of this name; of a newer one, the newest known."""
  return CHIPS.get(device_kind, DEFAULT_CHIP)


def lanes(width: int) -> int:
  """What an array whose last axis is this wide takes of VMEM."""
  return -(-width // 128) * 128


def vmem_bytes(
    *,
    rows: int,
    tile: int,
    vectors: int,
    matrices: int,
    stacked: int = 0,
    itemsize: int = 4,
) -> int:
  """Bytes of VMEM that a backward kernel, the larger of the two, needs.

  Args:
    rows: R, rows of a block.
    tile: C.
    vectors: `lanes` of all inputs and outputs of one row and token.
    matrices: elements of the carry and of the params of one row, rows times
      `lanes`.
    stacked: tiles whose carries are kept in VMEM; 0 where they are in HBM.
    itemsize: bytes of an element of the vectors.

  Returns:
    Blocks in two buffers (inputs, cotangents of outputs, gradients; carry,
    its cotangent in and out, and the saved one); the stack; and what the
    kernel computes with: about eight float32 copies of the vectors and two
    dozen C x C matrices a row.
  """
  vector_blocks = 2 * 2 * rows * tile * vectors * itemsize
  matrix_blocks = 4 * 2 * rows * matrices * 4
  stack = stacked * rows * matrices * 4
  temporaries = rows * tile * 4 * (8 * vectors + 24 * lanes(tile))
  return vector_blocks + matrix_blocks + stack + temporaries


def divisor(n: int, most: int) -> int:
  """The largest divisor of n that is at most `most`."""
  return max(d for d in range(1, max(1, min(n, most)) + 1) if n % d == 0)


class Blocks(NamedTuple):
  """How a scan is cut."""

  rows: int  # of the batch
  heads: int
  save_states: str  # 'hbm' or 'recompute'
  tiles_per_call: int
  vmem_limit_bytes: int


def choose(
    device: Chip,
    *,
    batch: int,
    length: int,
    heads: int,
    tile: int,
    vectors: int,
    matrices: int,
    itemsize: int,
    save_states: str,
) -> Blocks:
  """Blocks for a scan; see `vmem_bytes` for the arguments.

  As many rows as the table says for K = V = 128, more where a row is smaller
  and fewer where it is larger, as far as they divide B and H and fit. 'auto'
  recomputes where saved carries would be most of the traffic. Recomputed
  carries of all tiles, or else of as many as fit, are one kernel call.

  Raises:
    ValueError: one row does not fit.
  """
  limit = int(VMEM_SHARE * device.vmem_bytes)
  tiles = -(-length // tile)
  if save_states == 'auto':
    heavy = matrices * 4 / tile > vectors * itemsize
    save_states = 'recompute' if heavy else 'hbm'

  def needed(rows, stacked):
    return vmem_bytes(
        rows=rows, tile=tile, vectors=vectors, matrices=matrices,
        stacked=stacked, itemsize=itemsize,
    )

  size = max(tile, 64) * max(vectors // 4, 128)
  rows = max(1, device.rows * 128 * 128 // size)
  least = 1 if save_states == 'recompute' else 0
  while rows > 1 and needed(rows, least) > limit:
    rows -= 1
  if needed(rows, least) > limit:
    raise ValueError(
        f'a block of one row needs {needed(rows, least)} bytes of VMEM, more'
        f' than {limit}; got tile={tile}, save_states={save_states!r}'
    )
  of_heads = divisor(heads, rows)
  of_batch = divisor(batch, rows // of_heads)
  tiles_per_call = tiles
  if save_states == 'recompute':
    rows = of_batch * of_heads
    stack = min(
        limit - needed(rows, 0), int(STACK_SHARE * device.vmem_bytes)
    )
    tiles_per_call = divisor(
        tiles, max(1, stack // (rows * matrices * 4))
    )
  return Blocks(of_batch, of_heads, save_states, tiles_per_call, limit)
