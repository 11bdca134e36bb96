"""Formal languages from files: the published benchmark and its generator.

| split | published        | as the generator writes them             |
|-------|------------------|------------------------------------------|
| train | train_50.src and | train_src.txt, train_tgt.txt             |
|       | train_50.tgt     |                                          |
| bin0  | valid_50.*       | val_src_bin0.txt, val_tgt_bin0.txt       |
| bin1  | test_50.*        | val_src_bin1.txt, val_tgt_bin1.txt       |
| bin2  | none             | and so on, as far as there are           |

Published by github.com/IDSIA/fwp-formal-lang; the generator is
github.com/satwik77/Transformer-Formal-Languages.
"""

import os
import re
from typing import NamedTuple

from hope_jax.tasks.formal_languages import Example, Splits


class Files(NamedTuple):
  """Where a split is: paths."""

  source: str  # a string a line
  target: str  # its targets


# The training files of each layout, by which it is known, and those of the
# first test; what a folder must have.
_PUBLISHED = 'train_50.src', 'train_50.tgt'
_GENERATED = 'train_src.txt', 'train_tgt.txt'
_WANTED = (
    'train_50.src, train_50.tgt, valid_50.src, valid_50.tgt, test_50.src,'
    ' test_50.tgt, or train_src.txt, train_tgt.txt, val_src_bin0.txt,'
    ' val_tgt_bin0.txt and so on'
)
_BIN = re.compile(r'val_src_(bin\d+)\.txt')


def find(folder: str) -> dict[str, Files]:
  """Returns split -> its files; {} where a folder has neither layout."""
  there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  if _PUBLISHED[0] in there:
    # 'valid' has the training lengths, 'test' longer ones.
    names = {'train': _PUBLISHED} | {
        split: (f'{name}.src', f'{name}.tgt')
        for split, name in (('bin0', 'valid_50'), ('bin1', 'test_50'))
    }
  elif _GENERATED[0] in there:
    names = {'train': _GENERATED} | {
        found[1]: (name, f'val_tgt_{found[1]}.txt')
        for name in there
        if (found := _BIN.fullmatch(name))
    }
  else:
    return {}
  return {
      split: Files(*(os.path.join(folder, name) for name in pair))
      for split, pair in names.items()
  }


def read(folder: str) -> Splits:
  """Reads the files of a folder, in either layout.

  Source files hold a string a line, target files its targets, one for each
  symbol, both separated by spaces. A target is the name of a legal set, such as
  '0' and '1' for Parity's odd and even prefixes; here the set with that one
  element. Where no line of the source (target) files has a space inside, they
  hold a character a symbol (as many characters a target as makes the lines
  agree), as the generator writes them. Lines that are blank in both files are
  left out.

  The published code picks one target by a softmax; here each target is in the
  set or not, so that a string counts only where the right one is in and all
  others are out.

  Args:
    folder: where the files are.

  Raises:
    ValueError: a file is missing, empty or not UTF-8, or lines do not fit
      together.
  """
  files = find(folder)
  if not files:
    raise ValueError(f'{folder!r} must have {_WANTED}; {_there(folder)}')
  sources, targets = (
      {split: _lines(pair[i]) for split, pair in files.items()} for i in (0, 1)
  )
  spaced_sources, spaced_targets = (
      any(len(line.split()) > 1 for lines in kind.values() for line in lines)
      for kind in (sources, targets)
  )
  return {
      split: _examples(
          pair, sources[split], targets[split], spaced_sources, spaced_targets
      )
      for split, pair in files.items()
  }


def _there(folder: str) -> str:
  """Says in a few words what a folder has."""
  if not os.path.isdir(folder):
    return 'there is no such folder'
  names = sorted(
      name + '/' * os.path.isdir(os.path.join(folder, name))
      for name in os.listdir(folder)
  )
  more = f' and {len(names) - 6} more' if len(names) > 6 else ''
  return f'it has {", ".join(names[:6]) or "nothing"}{more}'


def _examples(
    files: Files,
    sources: list[str],
    targets: list[str],
    spaced_sources: bool,
    spaced_targets: bool,
) -> list[Example]:
  """The strings of a split; spaced: whether spaces separate symbols."""
  folder, target_name = os.path.split(files.target)
  if len(sources) != len(targets):
    raise ValueError(
        f'{os.path.basename(files.source)} and {target_name} in {folder!r} must'
        f' have equally many lines; got {len(sources)} and {len(targets)}'
    )
  examples = []
  for number, (source, target) in enumerate(zip(sources, targets), 1):
    if not (source or target):
      continue
    symbols = source.split() if spaced_sources else list(source)
    if spaced_targets:
      labels = target.split()
    else:
      labels = _cut(target, max(len(target) // max(len(symbols), 1), 1))
    if len(symbols) != len(labels) or not symbols:
      raise ValueError(
          f'{target_name} line {number} in {folder!r} must have one target a'
          f' symbol; got {len(labels)} targets for {len(symbols)} symbols'
      )
    legal = tuple(frozenset((label,)) for label in labels)
    examples.append(Example(tuple(symbols), legal))
  return examples


def _lines(path: str) -> list[str]:
  folder, name = os.path.split(path)
  if not os.path.isfile(path):
    raise ValueError(f'{folder!r} must have {name}; {_there(folder)}')
  try:
    with open(path, encoding='utf-8-sig') as file:
      lines = [line.strip() for line in file.read().rstrip().split('\n')]
  except UnicodeDecodeError as error:
    raise ValueError(f'{path!r} must be UTF-8 text: {error}') from error
  if lines == ['']:
    raise ValueError(f'{path!r} must have strings; it is empty')
  return lines


def _cut(line: str, width: int) -> list[str]:
  return [line[i : i + width] for i in range(0, len(line), width)]
