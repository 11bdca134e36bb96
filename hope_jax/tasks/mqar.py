"""Multi-query associative recall, MQAR (Arora et al. 2023, arXiv 2312.04927).

A row lists key-value pairs, then asks for every key again, once, at positions
that get rarer with the distance; a query's answer is the key's value. Keys are
from the lower half of the vocabulary, values from the upper half; what is
neither pair nor query is random.

As published, but for this: the published figure of recall by width (figure 2;
github.com/HazyResearch/zoology) fills its rows with zeros, `fill='zeros'`, so
that no filler can be taken for a key; the default of its generator is random.
Later work there trains one model on several lengths and numbers of pairs,
`mixture`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hope_jax.tasks.labelling import Arrays


def generate(
    seed: int | Sequence[int],
    count: int,
    *,
    length: int,
    pairs: int,
    vocab: int = 8192,
    power: float = 0.01,
    fill: Literal['random', 'zeros'] = 'random',
) -> Arrays:
  """Makes rows of the task.

  Args:
    seed: decides every row; a number or several, as NumPy takes them.
    count: rows N.
    length: tokens T of a row, an even number.
    pairs: key-value pairs of a row, all keys different.
    vocab: tokens E; 0 is left out, keys are in [1, E / 2), values above.
    power: a query stands 2 g tokens after the list with a probability in
      proportion to g^(power - 1), each position taken once.
    fill: what is neither pair nor query: tokens of the whole vocabulary, or 0,
      which is neither key nor value. Pairs and queries are the same in both.

  Returns:
    tokens, targets and mask (1 at the queries), see `labelling`.

  Raises:
    ValueError: the row is too short for pairs and queries, there are too few
      keys, or no such filler.
  """
  if fill not in ('random', 'zeros'):
    raise ValueError(f"fill must be 'random' or 'zeros'; got {fill!r}")
  gaps = (length - 2 * pairs) // 2  # there are, two tokens each
  if length % 2 or gaps < pairs:
    raise ValueError(
        'length must be even and at least 4 pairs; got'
        f' length={length}, pairs={pairs}'
    )
  half = vocab // 2
  if pairs > half - 1:
    raise ValueError(
        f'pairs must be at most the {half - 1} keys of vocab={vocab};'
        f' got {pairs}'
    )
  rng = np.random.default_rng(seed)
  weights = np.arange(1, gaps + 1) ** (power - 1)
  weights /= weights.sum()
  tokens = rng.integers(1, vocab, (count, length))
  if fill == 'zeros':
    tokens[:] = 0
  targets = np.zeros((count, length), np.int32)
  mask = np.zeros((count, length), np.float32)
  for row in range(count):
    keys = 1 + rng.choice(half - 1, pairs, replace=False)
    values = half + rng.choice(vocab - half, pairs, replace=False)
    tokens[row, : 2 * pairs] = np.stack([keys, values], axis=1).ravel()
    chosen = rng.choice(gaps, pairs, replace=False, p=weights)
    positions = 2 * pairs + 2 * chosen
    tokens[row, positions] = keys
    targets[row, positions] = values
    mask[row, positions] = 1
  return {'tokens': tokens.astype(np.int32), 'targets': targets, 'mask': mask}


def mixture(
    seed: int,
    count: int,
    *,
    lengths: Sequence[int],
    pairs: Sequence[int],
    **options: Any,
) -> Arrays:
  """Makes rows of several lengths and numbers of pairs, as many of each.

  Args:
    seed: decides every row.
    count: rows N in all; where it does not divide, the first have one more.
    lengths: tokens of each kind of row; shorter ones are padded at their end.
    pairs: key-value pairs of each.
    **options: of `generate`.

  Returns:
    As `generate`, T the longest of `lengths`, kind after kind; of one kind just
    what `generate` returns.

  Raises:
    ValueError: as `generate`, or not as many lengths as numbers of pairs.
  """
  if len(lengths) != len(pairs):
    raise ValueError(
        'length must be one number, or one for each number of pairs; got'
        f' {len(lengths)} for {len(pairs)}'
    )
  if len(pairs) == 1:
    return generate(seed, count, length=lengths[0], pairs=pairs[0], **options)
  kinds = []
  for i, (length, number) in enumerate(zip(lengths, pairs)):
    rows = count // len(pairs) + (i < count % len(pairs))
    made = generate((seed, i), rows, length=length, pairs=number, **options)
    padding = (0, 0), (0, max(lengths) - length)
    kinds.append({name: np.pad(x, padding) for name, x in made.items()})
  return {name: np.concatenate([k[name] for k in kinds]) for name in kinds[0]}
