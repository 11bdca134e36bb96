"""Formal languages: strings, and the legal next symbols at every position.

The protocol of Bhattamishra et al. 2020 ("On the Ability and Limitations of
Transformers to Recognize Formal Languages") and Irie et al. 2023 ("Practical
Computational Power of Linear Transformers and Their Recurrent and
Self-Referential Extensions"), which Table 5 of arXiv 2512.24695 follows: a
model reads a string of the language and names, after each symbol, the set of
symbols that may come next; a string counts only if every set is right. `END`
is in the set where the string may stop, so that Parity, whose next symbol is
always free, asks for the parity of each prefix.

All data comes in one form, whoever made it:

    Splits = {'train': [Example, ...], 'bin0': [...], 'bin1': [...], ...}

- `generate(language, seed)` for the eight languages of `LANGUAGES`;
- `language_files.read(folder)` for files of the published benchmark;
- `plug_in('file.py:function')` for any other language: a function of a seed
  that returns splits. It needs nothing of this package, since strings and legal
  sets may be of any iterables:

      def evens(seed):
        rng = random.Random(seed)
        def example(n):
          return 'a' * n, [{'a', 'end'} if i % 2 else {'a'} for i in range(n)]
        return {
            'train': [example(2 * rng.randint(1, 25)) for _ in range(10_000)],
            'bin0': [example(2 * n) for n in range(1, 26)],
            'bin1': [example(2 * n) for n in range(26, 51)],
        }
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import importlib.util
import os
from typing import NamedTuple

import numpy as np

END = 'end'


class Example(NamedTuple):
  """A string and what may follow each of its prefixes."""

  symbols: tuple[str, ...]
  legal: tuple[frozenset[str], ...]  # as long as `symbols`


Splits = dict[str, list[Example]]

# Lengths of each split, both ends included. Bin2 and Bin3 are not published.
LENGTHS = {
    'train': (2, 50),
    'bin0': (2, 50),
    'bin1': (51, 100),
    'bin2': (100, 500),
    'bin3': (500, 2000),
}
COUNTS = {'train': 10_000, 'bin0': 500, 'bin1': 500, 'bin2': 100, 'bin3': 50}


class Language(NamedTuple):
  """A language as two functions, neither of which knows the other."""

  # (rng, length) -> a string of the language.
  draw: Callable[[np.random.Generator, int], str]
  # string -> the legal sets after each of its symbols.
  legal: Callable[[str], list[set[str]]]
  # Every length of the language is a multiple of this.
  step: int
  # Whether there is one string of a length, so that 10,000 must repeat.
  single: bool


def _parity(rng: np.random.Generator, length: int) -> str:
  bits = rng.integers(0, 2, length)
  bits[-1] = bits[:-1].sum() % 2
  return ''.join('01'[b] for b in bits)


def _parity_legal(string: str) -> list[set[str]]:
  odd, sets = False, []
  for symbol in string:
    odd ^= symbol == '1'
    sets.append({'0', '1'} if odd else {'0', '1', END})
  return sets


def _repeat(unit: str) -> Language:
  """unit*, such as (aa)*: the position in the unit decides what comes next."""

  def legal(string):
    return [
        {unit[i % len(unit)]} | ({END} if i % len(unit) == 0 else set())
        for i in range(1, len(string) + 1)
    ]

  def draw(rng, length):
    del rng
    return unit * (length // len(unit))

  return Language(draw, legal, step=len(unit), single=True)


def _counter(letters: str) -> Language:
  """a^n b^n, a^n b^n c^n, ...: the first letter is free, the rest are not."""

  def legal(string):
    n = string.count(letters[0])
    sets = [{letters[0], letters[1]}] * n
    for letter, following in zip(letters[1:], [*letters[2:], END]):
      sets = sets + [{letter}] * (n - 1) + [{following}]
    return sets

  def draw(rng, length):
    del rng
    return ''.join(x * (length // len(letters)) for x in letters)

  return Language(draw, legal, step=len(letters), single=True)


def _balanced(
    rng: np.random.Generator, length: int, brackets: str = '()'
) -> str:
  """A Dyck word, all of a length equally likely.

  With r symbols to go at depth h, of the ballot paths back to depth 0 a share
  (h + 2) (r - h) / (2 r (h + 1)) goes up.
  """
  depth, word = 0, []
  for left in range(length, 0, -1):
    up = (depth + 2) * (left - depth) / (2 * left * (depth + 1))
    opens = rng.random() < up
    depth += 1 if opens else -1
    word.append(brackets[not opens])
  return ''.join(word)


def _shuffle2(rng: np.random.Generator, length: int) -> str:
  """Two Dyck words, their symbols riffled."""
  pairs = rng.binomial(length // 2, 0.5)
  sizes = 2 * pairs, length - 2 * pairs
  words = [
      iter(_balanced(rng, size, brackets))
      for size, brackets in zip(sizes, ('()', '[]'))
  ]
  turns = rng.permutation(np.repeat([0, 1], sizes))
  return ''.join(next(words[turn]) for turn in turns)


def _brackets_legal(kinds: Sequence[str], reset: str = ''):
  """Brackets of each kind count by themselves; `reset` forgets them all."""

  def legal(string):
    depth, sets = dict.fromkeys(kinds, 0), []
    for symbol in string:
      for kind in kinds:
        depth[kind] += (symbol == kind[0]) - (symbol == kind[1])
        if symbol == reset:
          depth[kind] = 0
      allowed = {kind[0] for kind in kinds} | set(reset)
      allowed |= {kind[1] for kind in kinds if depth[kind]}
      sets.append(allowed if any(depth.values()) else allowed | {END})
    return sets

  return legal


def _reset_dyck1(rng: np.random.Generator, length: int) -> str:
  """The start of a Dyck word, a reset, a Dyck word (Irie et al. 2023)."""
  after = 2 * int(rng.integers(0, (length - 1) // 2 + 1))
  before = length - 1 - after
  return _balanced(rng, 2 * before)[:before] + '1' + _balanced(rng, after)


LANGUAGES = {
    'parity': Language(_parity, _parity_legal, step=1, single=False),
    'aa_star': _repeat('aa'),
    'abab_star': _repeat('abab'),
    'anbn': _counter('ab'),
    'anbncn': _counter('abc'),
    'shuffle2': Language(
        _shuffle2, _brackets_legal(('()', '[]')), step=2, single=False
    ),
    'dyck1': Language(
        _balanced, _brackets_legal(('()',)), step=2, single=False
    ),
    'reset_dyck1': Language(
        _reset_dyck1, _brackets_legal(('()',), reset='1'), step=1, single=False
    ),
}


def generate(
    language: str,
    seed: int,
    *,
    lengths: Mapping[str, tuple[int, int]] = LENGTHS,
    counts: Mapping[str, int] = COUNTS,
) -> Splits:
  """Makes the splits of a language.

  Lengths are drawn uniformly among those the language has. No string is in two
  splits or twice in one, so that 'train', which is drawn first, takes all short
  strings there are: Bin0 of Dyck-1 begins at 14 symbols, that of Parity at 8. A
  language with one string a length repeats them in 'train', and its other
  splits hold each of their strings once, whether another split has it or not. A
  split may thus hold fewer strings than `counts` says.

  Not specified by the papers: lengths count symbols for every language (the
  published generator counts n for a^n b^n). Bits of Parity are fair, all Dyck
  words of a length are equally likely (there: a grammar that prefers short
  strings), Shuffle-2 riffles two Dyck words of binomial lengths, and reset
  Dyck-1 draws its last part's length uniformly.

  Args:
    language: a key of `LANGUAGES`.
    seed: decides every string.
    lengths: split -> shortest and longest string, both included.
    counts: split -> strings; the splits that are made.

  Raises:
    ValueError: no such language, or no string of such a length.
  """
  if language not in LANGUAGES:
    raise ValueError(
        f'language must be one of {", ".join(LANGUAGES)}; got {language!r}'
    )
  made = LANGUAGES[language]
  rng = np.random.default_rng(seed)
  splits, seen = {}, set()
  for split, count in counts.items():
    low, high = lengths[split]
    sizes = [n for n in range(low, high + 1) if n % made.step == 0]
    if not sizes:
      raise ValueError(
          f'lengths[{split!r}] must hold a multiple of {made.step}, which'
          f' strings of {language!r} need; got {(low, high)}'
      )
    if made.single:
      repeats = split == 'train'
      size = count if repeats else min(count, len(sizes))
      chosen = rng.choice(sizes, size, replace=repeats)
      strings = [made.draw(rng, int(n)) for n in chosen]
    else:
      strings = _distinct(rng, made, sizes, count, seen)
    splits[split] = [_example(s, made.legal(s)) for s in strings]
  return splits


def _distinct(rng, language, sizes, count, seen) -> list[str]:
  """Draws `count` strings that are not in `seen`, and adds them to it."""
  strings, misses = [], 0
  # A language with too few strings runs dry: then most draws are old ones.
  while len(strings) < count and misses < 100 * (count + 1):
    string = language.draw(rng, int(rng.choice(sizes)))
    if string in seen:
      misses += 1
      continue
    seen.add(string)
    strings.append(string)
  return strings


def _example(
    symbols: Iterable[str], legal: Iterable[Iterable[str]]
) -> Example:
  legal = list(legal)
  for one in legal:
    if isinstance(one, str) and len(one) > 1:
      raise TypeError(f'a legal set is a set of symbols, not {one!r}')
  return Example(tuple(symbols), tuple(frozenset(s) for s in legal))


@contextlib.contextmanager
def _failing(source: str) -> Iterator[None]:
  """Turns what a user's code raises into a ValueError that says whose it is."""
  try:
    yield
  except Exception as error:
    raise ValueError(
        f'{source} failed: {type(error).__name__}: {error}'
    ) from error


def plug_in(source: str, seed: int) -> Splits:
  """Calls a function of the user's; see the module docstring.

  Args:
    source: 'FILE.py:FUNCTION'. The function takes the seed, and returns split
      -> (string, legal sets) pairs: a string is an iterable of symbols, and
      there is one set of symbols for each.
    seed: handed to the function.

  Raises:
    ValueError: there is no such function, it fails, or what it returns is no
      splits.
  """
  path, _, name = source.partition(':')
  if not os.path.isfile(path):
    raise ValueError(f'a language is FILE.py:FUNCTION; no file {path!r}')
  spec = importlib.util.spec_from_file_location('language', path)
  if spec is None or spec.loader is None:
    raise ValueError(f'a language is FILE.py:FUNCTION; got {source!r}')
  module = importlib.util.module_from_spec(spec)
  with _failing(source):
    spec.loader.exec_module(module)
  function = getattr(module, name, None)
  if function is None:
    raise ValueError(f'a language is FILE.py:FUNCTION; no {name!r} in {path!r}')
  with _failing(source):
    made = function(seed)
  try:
    splits = {
        split: [_example(*pair) for pair in pairs]
        for split, pairs in made.items()
    }
  except (AttributeError, TypeError) as error:
    raise ValueError(
        f'{source} must return split -> (string, legal sets) pairs; got'
        f' {type(made).__name__}: {error}'
    ) from error
  if 'train' not in splits:
    raise ValueError(f"{source} must return a split 'train'; got {[*splits]}")
  for split, examples in splits.items():
    for i, example in enumerate(examples):
      if not example.symbols or len(example.symbols) != len(example.legal):
        raise ValueError(
            f'{source}: a string needs one legal set a symbol; got'
            f' {len(example.legal)} for {len(example.symbols)} in {split}[{i}]'
        )
  return splits
