"""Multi-query associative recall, MQAR (Arora et al. 2023, arXiv 2312.04927).

A row lists key-value pairs, then asks for every key again, once, at positions
that get rarer with the distance; a query's answer is the key's value. Keys are
from the lower half of the vocabulary, values from the upper half; what is
neither pair nor query is random.
"""

import numpy as np

from hope_jax.tasks.labelling import Arrays


def generate(
    seed: int,
    count: int,
    *,
    length: int,
    pairs: int,
    vocab: int = 8192,
    power: float = 0.01,
) -> Arrays:
  """Makes rows of the task.

  Args:
    seed: decides every row.
    count: rows N.
    length: tokens T of a row, an even number.
    pairs: key-value pairs of a row, all keys different.
    vocab: tokens E; 0 is left out, keys are in [1, E / 2), values above.
    power: a query stands 2 g tokens after the list with a probability in
      proportion to g^(power - 1), each position taken once.

  Returns:
    tokens, targets and mask (1 at the queries), see `labelling`.

  Raises:
    ValueError: the row is too short for pairs and queries, or there are too few
      keys.
  """
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
