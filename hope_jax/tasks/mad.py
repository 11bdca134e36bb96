"""The six tasks of MAD (Poli et al. 2024, arXiv 2403.17844), NL Table 4.

| task                   | reads                      | answers                |
|------------------------|----------------------------|------------------------|
| in_context_recall      | k v k v ... k              | v of a key seen before |
| noisy_in_context_recall| the same with noise between| the same               |
| fuzzy_in_context_recall| keys, values of 1-3 tokens | every token of a value |
| selective_copying      | tokens among blanks, then  | the tokens in order    |
|                        | a mark and blanks          |                        |
| memorization           | k mark k mark ...          | v of each k, a map that|
|                        |                            | is the same in all rows|
| compression            | tokens, then a mark        | the tokens (see below) |

Defaults are the protocol's base difficulty. Recall is asked for wherever a key
comes again ('multi_query' of the published configurations), in training and in
test.

As published, but for this: answers alone are asked for (there, recall trains on
every next token), and in the fuzzy task's test, as in its training, keys have
one to three tokens (there, three), half of them old ones; in selective copying
any places are as likely for the tokens (spread='tokens'), where the published
generator spreads the blanks: each stands in front of one of the tokens, any as
likely (spread='blanks'), so that gaps are about equal, 14 blanks each at base
difficulty, and the last token is next to the mark.

Not specified by NL: compression. The protocol has an encoder whose last state
alone is decoded, a position at a time; here the same causal model reads the
tokens and the mark, and after it, from blanks alone, says them in order: all it
knows of them went through its state at the mark.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hope_jax.tasks.labelling import Arrays


class Base(NamedTuple):
  """A task at the protocol's base difficulty."""

  make: Callable[..., tuple[list[int], list[int]]]
  vocab: int
  length: int
  train: int  # rows to train on
  test: int
  options: dict


NONE = -1  # no answer is asked for


def _recall(rng, vocab, length, *, noise_vocab=0, noise=0.0):
  """Pairs of a key and its value; noise takes the place of whole pairs."""
  clean = vocab - noise_vocab
  values = {}
  tokens, targets = [], []
  while len(tokens) < length:
    if noise and values and rng.random() < noise:
      tokens += list(clean + rng.integers(0, noise_vocab, 2))
      targets += [NONE, NONE]
      continue
    key = int(rng.integers(0, clean // 2))
    again = key in values
    if not again:
      values[key] = int(rng.integers(clean // 2, clean))
    tokens += [key, values[key]]
    targets += [values[key] if again else NONE, NONE]
  return tokens, targets


def _fuzzy(rng, vocab, length, *, motif=3):
  """Keys and values of up to `motif` different tokens, one after the other."""
  pad = vocab - 1
  half = (vocab - 1) // 2

  def draw(low, high):
    size = int(rng.integers(1, motif + 1))
    return tuple(int(x) for x in low + rng.permutation(high - low)[:size])

  values = {}
  tokens, targets = [], []
  while len(tokens) + 2 * motif <= length:
    key = draw(0, half)
    # Few keys of three tokens come twice by chance: half are old ones.
    if values and rng.random() < 0.5:
      key = list(values)[rng.integers(len(values))]
    again = key in values
    value = values.setdefault(key, draw(half, vocab - 1))
    tokens += [*key, *value]
    # A token is predicted from the one before it.
    asked = value if again else (NONE,) * len(value)
    targets += [*(NONE,) * (len(key) - 1), *asked, NONE]
  missing = length - len(tokens)
  return [pad] * missing + tokens, [NONE] * missing + targets


def _selective_copying(rng, vocab, length, *, copies=16, spread='tokens'):
  """Tokens among blanks; after a mark, as many blanks ask for them."""
  mark, blank = vocab - 1, vocab - 2
  said = rng.integers(0, vocab - 2, copies)
  before = np.full(length - copies - 1, blank)
  if spread == 'tokens':
    places = np.sort(rng.permutation(len(before))[:copies])
  elif spread == 'blanks':
    # Of the tokens, the one that each blank stands in front of.
    behind = rng.integers(0, copies, len(before) - copies)
    gaps = np.bincount(behind, minlength=copies)
    places = np.cumsum(gaps + 1) - 1
  else:
    raise ValueError(f"spread must be 'tokens' or 'blanks'; got {spread!r}")
  before[places] = said
  tokens = [*before, mark, *[blank] * copies]
  return tokens, [NONE] * (length - copies) + list(said)


def _memorization(rng, vocab, length):
  """Keys of a map that no row shows: it has to be in the parameters."""
  mark, half = vocab - 1, (vocab - 1) // 2
  learned = half + np.random.default_rng(12345).permutation(half)
  keys = rng.integers(0, half, length // 2)
  tokens = np.stack([keys, np.full_like(keys, mark)], axis=1).ravel()
  targets = np.stack([np.full_like(keys, NONE), learned[keys]], axis=1).ravel()
  return list(tokens), list(targets)


def _compression(rng, vocab, length):
  """`length` - 1 tokens and a mark; then a blank a token asks for them."""
  mark, blank = vocab - 1, vocab - 2
  said = rng.integers(0, vocab - 2, length - 1)
  tokens = [*said, mark, *[blank] * (length - 1)]
  return tokens, [NONE] * length + list(said)


TASKS = {
    'in_context_recall': Base(_recall, 16, 128, 12_800, 1280, {}),
    'noisy_in_context_recall': Base(
        _recall, 32, 128, 12_800, 1280, dict(noise_vocab=16, noise=0.2)
    ),
    'fuzzy_in_context_recall': Base(
        _fuzzy, 16, 128, 12_800, 1280, dict(motif=3)
    ),
    'selective_copying': Base(
        _selective_copying, 16, 256, 12_800, 1280,
        dict(copies=16, spread='tokens'),
    ),
    'memorization': Base(_memorization, 256, 32, 256, 1280, {}),
    'compression': Base(_compression, 16, 32, 12_800, 1280, {}),
}


def generate(
    task: str,
    seed: int,
    count: int,
    *,
    vocab: int | None = None,
    length: int | None = None,
    **options,
) -> Arrays:
  """Makes rows of a task.

  Args:
    task: a key of `TASKS`.
    seed: decides every row.
    count: rows N.
    vocab: tokens E; None: the base difficulty's.
    length: tokens of a row (of what is compressed, for 'compression'); None:
      the base difficulty's.
    **options: of the task: noise, noise_vocab, motif, copies, spread.

  Returns:
    tokens, targets and mask, see `labelling`.

  Raises:
    ValueError: no such task, or no such spread.
  """
  if task not in TASKS:
    raise ValueError(f'task must be one of {", ".join(TASKS)}; got {task!r}')
  base = TASKS[task]
  rng = np.random.default_rng(seed)
  rows = [
      base.make(
          rng, vocab or base.vocab, length or base.length,
          **{**base.options, **options},
      )
      for _ in range(count)
  ]
  tokens, targets = (np.array(x, np.int32) for x in zip(*rows))
  asked = targets != NONE
  return {
      'tokens': tokens,
      'targets': np.where(asked, targets, 0),
      'mask': asked.astype(np.float32),
  }
