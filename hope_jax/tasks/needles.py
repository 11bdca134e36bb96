"""Needles in haystacks, after RULER (Hsieh et al. 2024, arXiv 2404.06654).

A row is a long text in which some sentences, the needles, give the code of a
name, and then a question for one code or more with its answer. Templates,
haystacks and names are words of our own; difficulty is RULER's (NL Table 1):

| task     | haystack             | code     | needles                         |
|----------|----------------------|----------|---------------------------------|
| s_niah_1 | four sentences, over | 7 digits | one                             |
|          | and over             |          |                                 |
| s_niah_2 | prose                | 7 digits | one                             |
| s_niah_3 | prose                | a UUID   | one                             |
| mk_niah  | prose                | 7 digits | of four names, one is asked for |
| mq_niah  | prose                | 7 digits | of four names, all asked for    |
| mv_niah  | prose                | 7 digits | four of one name, all asked for |

Several codes are asked for in the order in which a reader met their needles
('mv_niah') or the question names them ('mq_niah').
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple
import uuid

import numpy as np

from hope_jax.tasks.labelling import Arrays

Encode = Callable[[str], Sequence[int]]


class Kind(NamedTuple):
  """The difficulty of a task."""

  haystack: Literal['repeated', 'prose']
  code: Literal['number', 'uuid']
  names: int
  codes: int  # of each name
  asked: int  # names that the question is about


TASKS = {
    's_niah_1': Kind('repeated', 'number', 1, 1, 1),
    's_niah_2': Kind('prose', 'number', 1, 1, 1),
    's_niah_3': Kind('prose', 'uuid', 1, 1, 1),
    'mk_niah': Kind('prose', 'number', 4, 1, 1),
    'mq_niah': Kind('prose', 'number', 4, 1, 4),
    'mv_niah': Kind('prose', 'number', 1, 4, 1),
}

INTRODUCTION = 'Codes are hidden in this text. Remember them.\n'
NEEDLE = 'The code of the {name} is {code}. '
QUESTION = '\nWhat is the code of the {names}? It is '
REPEATED = (
    'Rain fell on the hill all day. ',
    'A boat lay by the shore. ',
    'Nobody came up the road. ',
    'Then it was evening again. ',
)
ADJECTIVES = (
    'amber', 'ancient', 'bitter', 'blue', 'brave', 'broken', 'calm', 'clever',
    'copper', 'crimson', 'distant', 'drowsy', 'eager', 'early', 'empty',
    'faded', 'fallen', 'fancy', 'fierce', 'frozen', 'gentle', 'golden', 'green',
    'hidden', 'hollow', 'humble', 'idle', 'ivory', 'jolly', 'lazy', 'little',
    'lonely', 'lost', 'loud', 'lucky', 'marble', 'mild', 'misty', 'modest',
    'narrow', 'nimble', 'noble', 'odd', 'old', 'pale', 'patient', 'plain',
    'proud', 'purple', 'quick', 'quiet', 'rapid', 'rough', 'round', 'rusty',
    'scarlet', 'secret', 'silent', 'silver', 'slow', 'small', 'smooth',
    'solemn', 'steady', 'strange', 'sunny', 'sweet', 'tall', 'tender', 'tidy',
    'tired', 'vast', 'warm', 'weary', 'white', 'wild', 'wise', 'wooden',
    'yellow', 'young',
)
NOUNS = (
    'anchor', 'apple', 'badger', 'barrel', 'basket', 'beacon', 'bell', 'bridge',
    'candle', 'canyon', 'castle', 'cellar', 'chapel', 'clock', 'comet', 'crow',
    'desert', 'dragon', 'drum', 'eagle', 'engine', 'falcon', 'feather', 'ferry',
    'forest', 'fountain', 'fox', 'garden', 'glacier', 'hammer', 'harbour',
    'harp', 'heron', 'island', 'jewel', 'kettle', 'ladder', 'lantern',
    'lighthouse', 'lion', 'magnet', 'market', 'meadow', 'mill', 'mirror',
    'monkey', 'mountain', 'needle', 'oak', 'orchard', 'otter', 'owl', 'palace',
    'pearl', 'pillar', 'planet', 'pond', 'quarry', 'rabbit', 'raven', 'ribbon',
    'river', 'robin', 'rocket', 'rose', 'saddle', 'sparrow', 'spoon', 'station',
    'stone', 'temple', 'tiger', 'tower', 'tunnel', 'valley', 'violin', 'wagon',
    'whale', 'willow', 'window',
)
_PEOPLE = (
    'The miller', 'Her brother', 'A stranger', 'The teacher', 'My neighbour',
    'The captain', 'An old friend', 'The baker', 'His daughter', 'The clerk',
    'Our guest', 'The painter', 'A young nurse', 'The gardener', 'Somebody',
)
_DEEDS = (
    'walked past', 'wrote about', 'dreamed of', 'looked for', 'talked about',
    'remembered', 'sold', 'drew', 'repaired', 'waited near', 'pointed at',
    'asked after', 'sang of', 'forgot', 'kept watch over',
)
_TIMES = (
    'before breakfast', 'in the winter', 'that afternoon', 'without a word',
    'for many years', 'after the storm', 'on a market day', 'late at night',
    'while the others slept', 'with some regret', 'more than once',
    'as the train left', 'under a grey sky', 'in great haste', 'by candlelight',
)


def utf8(text: str) -> list[int]:
  """The bytes of a text, as token ids."""
  return list(text.encode())


def generate(
    task: str,
    seed: int | Sequence[int],
    count: int,
    *,
    length: int,
    depth: float | None = None,
    encode: Encode = utf8,
) -> Arrays:
  """Makes rows of a task.

  The row is encoded a sentence at a time, so that the answer's tokens are the
  same wherever it stands.

  Args:
    task: a key of `TASKS`.
    seed: decides every row; a number or several, as NumPy takes them.
    count: rows N.
    length: tokens T of a row at most; what the haystack does not fill, as a
      whole sentence does not fit, is padding at the end.
    depth: where the first needle that is asked for stands, 0 the haystack's
      start, 1 its end; others that are asked for come after it, and the rest
      are anywhere. None: all are anywhere.
    encode: text -> token ids; bytes by default.

  Returns:
    tokens; targets (the next token), mask (1 where the next token is the
    answer's) and parts (which of the answer's codes that is), see `labelling`;
    and 'depth' [N] float32, the share of the haystack before the first needle
    that is asked for. A code's part has the mark behind it, too.

  Raises:
    ValueError: no such task, or rows too short for needles and question.
  """
  kind = _kind(task)
  if depth is not None and not 0 <= depth <= 1:
    raise ValueError(f'depth must be in [0, 1]; got {depth}')
  rng = np.random.default_rng(seed)
  arrays = _blank(count, length) | {
      'parts': np.zeros((count, length), np.int32),
      'depth': np.zeros((count,), np.float32),
  }
  for row in range(count):
    before, answer, arrays['depth'][row] = _row(
        kind, rng, length, depth, encode
    )
    _write(arrays, row, 0, before, sum(answer, []))
    numbers = np.repeat(np.arange(len(answer)) + 1, list(map(len, answer)))
    arrays['parts'][row, arrays['mask'][row] > 0] = numbers
  return arrays


def pack(
    task: str, seed: int, count: int, *, length: int, encode: Encode = utf8
) -> Arrays:
  """Makes rows of several texts, one after the other, to train on.

  A text with one question has few answers to learn from: here lengths of texts
  differ, from no haystack at all to the whole row, and each has its answer. No
  text sees those before it.

  Args:
    task: a key of `TASKS`.
    seed: decides every row.
    count: rows N.
    length: tokens T of a row at most; padding follows the last text.
    encode: text -> token ids.

  Returns:
    tokens, targets and mask, as of `generate`, and segment_ids.

  Raises:
    ValueError: no such task, or rows too short for a text without haystack.
  """
  kind = _kind(task)
  rng = np.random.default_rng(seed)
  arrays = _blank(count, length)
  arrays['segment_ids'] = np.zeros((count, length), np.int32)
  for row in range(count):
    texts, left = [], length
    while True:
      size = int(rng.integers(0, left + 1))
      before, parts, _ = _row(kind, rng, size, None, encode, bare=True)
      answer = sum(parts, [])
      left -= len(before) + len(answer)
      if left < 0:
        break
      texts.append((before, answer))
    if not texts:
      raise ValueError(
          f'length must hold a text of {task} without haystack; got'
          f' length={length}, which is {-left} too few'
      )
    start = 0
    for number, i in enumerate(rng.permutation(len(texts)), 1):
      end = _write(arrays, row, start, *texts[i])
      arrays['segment_ids'][row, start:end] = number
      start = end
  return arrays


def _kind(task: str) -> Kind:
  if task not in TASKS:
    raise ValueError(f'task must be one of {", ".join(TASKS)}; got {task!r}')
  return TASKS[task]


def _blank(count: int, length: int) -> Arrays:
  """Rows of padding that ask for nothing."""
  return {
      'tokens': np.zeros((count, length), np.int32),
      'targets': np.zeros((count, length), np.int32),
      'mask': np.zeros((count, length), np.float32),
  }


def _write(
    arrays: Arrays, row: int, start: int, before: list[int], answer: list[int]
) -> int:
  """Puts a text into a row, and asks for its answer; returns where it ends."""
  ids = np.array(before + answer, np.int32)
  end = start + len(ids)
  arrays['tokens'][row, start:end] = ids
  arrays['targets'][row, start : end - 1] = ids[1:]
  arrays['mask'][row, start + len(before) - 1 : end - 1] = 1
  return end


def _row(
    kind: Kind,
    rng,
    length: int,
    depth: float | None,
    encode: Encode,
    *,
    bare: bool = False,
) -> tuple[list[int], list[list[int]], float]:
  """One text: ids before the answer, ids of each code of the answer, depth.

  bare: whether it may be longer than `length` where it has no haystack.
  """
  names = _names(rng, kind.names)
  needles = [
      (name, _code(kind, rng)) for name in names for _ in range(kind.codes)
  ]
  asked = names[: kind.asked]
  # The list starts with what is asked for. Where a depth is given, one of these
  # needles stands there, and the others after it.
  shares = rng.random(len(needles))
  if depth is not None:
    wanted = kind.asked * kind.codes
    shares[:wanted] = depth + (1 - depth) * shares[:wanted]
    shares[rng.integers(wanted)] = depth
  order = np.argsort(shares, kind='stable')
  needles = [needles[i] for i in order]
  # A name's codes in the order of their needles.
  answers = [c for name in asked for n, c in needles if n == name]
  question = QUESTION.format(names=', of the '.join(asked))
  head, tail = list(encode(INTRODUCTION)), list(encode(question))
  # Each code with its mark by itself, so that its tokens are its own.
  starts = [''] + [' '] * (len(answers) - 1)
  marks = [','] * (len(answers) - 1) + ['.']
  answer = [
      list(encode(''.join(parts))) for parts in zip(starts, answers, marks)
  ]
  hidden = [
      list(encode(NEEDLE.format(name=name, code=code)))
      for name, code in needles
  ]
  free = length - sum(map(len, (head, tail, *answer, *hidden)))
  if free < 0 and not bare:
    raise ValueError(
        f'length must hold needles, question and answer; got length={length},'
        f' which is {-free} too few'
    )
  hay = []
  while True:
    sentence = list(encode(_sentence(kind, rng, len(hay))))
    free -= len(sentence)
    if free < 0:
      break
    hay.append(sentence)
  positions = (shares[order] * (len(hay) + 1)).astype(int).clip(max=len(hay))
  first = next(i for i, (name, _) in enumerate(needles) if name in asked)
  # The last first, so that earlier positions stay what they are.
  for position, needle in reversed(list(zip(positions, hidden))):
    hay.insert(position, needle)
  size = max(len(hay) - len(hidden), 1)
  return head + sum(hay, []) + tail, answer, positions[first] / size


def _names(rng, count: int) -> list[str]:
  chosen = rng.choice(len(ADJECTIVES) * len(NOUNS), count, replace=False)
  return [
      f'{ADJECTIVES[i // len(NOUNS)]} {NOUNS[i % len(NOUNS)]}' for i in chosen
  ]


def _code(kind: Kind, rng) -> str:
  if kind.code == 'uuid':
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))
  return str(rng.integers(10**6, 10**7))


def _sentence(kind: Kind, rng, number: int) -> str:
  if kind.haystack == 'repeated':
    return REPEATED[number % len(REPEATED)]
  adjective, noun = (words[rng.integers(len(words))] for words in (
      ADJECTIVES, NOUNS
  ))
  who, did, when = (words[rng.integers(len(words))] for words in (
      _PEOPLE, _DEEDS, _TIMES
  ))
  return f'{who} {did} the {adjective} {noun} {when}. '
