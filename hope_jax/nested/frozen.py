"""Frozen copies: the memories at a chunk's start, which its tokens read.

A carry keeps the copies that are read in a later tile than the one they were
made in. In chunks of one tile, the copy is the memory itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.dgd.products import column
from hope_jax.nested import dgd
from hope_jax.types import Array


class Copied(NamedTuple):
  """Of which memories a frozen copy outlives the tile that it was made in."""

  main: bool
  rest: bool

  def stack(self, stack: tuple[str, ...], members: dgd.Members) -> bool:
    """Whether the output layers of a stack of memories are copied."""
    return self.main if members.is_first(stack) else self.rest


def select(flag: Array, new, old):
  """Where flag [..., 1, 1] is positive, the leaves of `new`, else of `old`."""

  def leaf(a, b):  # a stack of memories has an axis more
    where = flag if b.ndim == flag.ndim else flag[..., None, :, :]
    return jnp.where(where > 0, a, b)

  return jax.tree.map(leaf, new, old)


def only_copied(
    bank: dgd.Bank, members: dgd.Members, copied: Copied
) -> dgd.Bank:
  """What a carry keeps of a bank of frozen copies: those that are copied."""
  start = 0 if copied.main else members.widths[0]
  stop = None if copied.rest else members.widths[0]
  return dgd.Bank(
      bank.first[..., start:stop],
      tuple(
          x for stack, x in zip(members.stacks, bank.second)
          if copied.stack(stack, members)
      ),
  )


def with_copied(
    bank: dgd.Bank, kept: dgd.Bank, members: dgd.Members, copied: Copied
) -> dgd.Bank:
  """The bank, with the copies that a carry keeps in their memories' places."""
  width = members.widths[0]
  parts = [
      *([] if copied.main else [bank.first[..., :width]]), kept.first,
      *([] if copied.rest else [bank.first[..., width:]]),
  ]
  copies = iter(kept.second)
  return dgd.Bank(
      jnp.concatenate(parts, axis=-1),
      tuple(
          next(copies) if copied.stack(stack, members) else x
          for stack, x in zip(members.stacks, bank.second)
      ),
  )


def refresh(
    kept: dgd.Bank,
    bank: dgd.Bank,
    opens: tuple[Array, Array],
    members: dgd.Members,
    copied: Copied,
) -> dgd.Bank:
  """All frozen copies; those of memories whose chunk starts with a tile, anew.

  Args:
    kept: what a carry has kept, see `only_copied`.
    bank: the memories at the tile's start.
    opens: [..., C], 1 where a chunk starts with the tile: of the main memory,
      and of the others.
    members: the memories of the bank.
    copied: which of them are kept.
  """
  frozen = with_copied(bank, kept, members, copied)
  main, rest = (column(x)[..., :1, :] for x in opens)
  width = members.widths[0]
  parts = [select(main, bank.first[..., :width], frozen.first[..., :width])]
  if len(members.names) > 1:
    parts.append(
        select(rest, bank.first[..., width:], frozen.first[..., width:])
    )
  second = tuple(
      select(main if members.is_first(stack) else rest, new, old)
      for stack, new, old in zip(members.stacks, bank.second, frozen.second)
  )
  return dgd.Bank(jnp.concatenate(parts, axis=-1), second)
