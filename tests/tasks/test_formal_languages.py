"""The formal languages against recognisers that share nothing with them."""

import itertools
import re

import pytest

from hope_jax.tasks import formal_languages as fl

SMALL = {'train': (2, 12), 'bin0': (2, 12), 'bin1': (13, 20)}
FEW = {'train': 60, 'bin0': 20, 'bin1': 20}

# Recognisers by rewriting and by regular expressions, where the generators
# count: 'is this whole string in the language?'


def _reduces(string, *pairs):
  """Deletes what matches until nothing changes."""
  while True:
    shorter = string
    for pair in pairs:
      shorter = shorter.replace(pair, '')
    if shorter == string:
      return not string
    string = shorter


def _counts(letters):
  def member(string):
    n = len(string) // len(letters)
    return n > 0 and string == ''.join(x * n for x in letters)

  return member


def _reset_dyck(string):
  """Every part between resets starts a Dyck word; the last one is a whole."""
  *before, last = string.split('1')
  starts = (
      any(_reduces(part + ')' * n, '()') for n in range(len(part) + 1))
      for part in before
  )
  return _reduces(last, '()') and all(starts)


MEMBER = {
    'parity': re.compile('(0|10*1)*').fullmatch,
    'aa_star': re.compile('(aa)*').fullmatch,
    'abab_star': re.compile('(abab)*').fullmatch,
    'anbn': _counts('ab'),
    'anbncn': _counts('abc'),
    'shuffle2': lambda s: _reduces(re.sub(r'[\[\]]', '', s), '()')
    and _reduces(re.sub(r'[()]', '', s), '[]'),
    'dyck1': lambda s: _reduces(s, '()'),
    'reset_dyck1': _reset_dyck,
}
ALPHABET = {
    'parity': '01', 'aa_star': 'a', 'abab_star': 'ab', 'anbn': 'ab',
    'anbncn': 'abc', 'shuffle2': '()[]', 'dyck1': '()', 'reset_dyck1': '()1',
}
ALL = pytest.mark.parametrize('name', list(fl.LANGUAGES))


def legal_by_search(name, prefix, reach):
  """The next symbols for which some continuation is in the language."""
  member, legal = MEMBER[name], set()
  if member(prefix):
    legal.add(fl.END)
  for symbol in ALPHABET[name]:
    for extra in range(reach + 1):
      tails = itertools.product(ALPHABET[name], repeat=extra)
      if any(member(prefix + symbol + ''.join(tail)) for tail in tails):
        legal.add(symbol)
        break
  return legal


# Strings short enough that every continuation can be tried.
SHORT = {
    'parity': 8, 'aa_star': 12, 'abab_star': 8, 'anbn': 6, 'anbncn': 6,
    'shuffle2': 4, 'dyck1': 6, 'reset_dyck1': 5,
}


@ALL
def test_legal_sets_are_what_a_search_finds(name):
  """If it fails, a model is asked for the wrong answer."""
  size = SHORT[name]
  splits = fl.generate(
      name, 0, lengths={'train': (2, size)}, counts={'train': 30}
  )
  seen = set()
  for symbols, legal in splits['train']:
    for i in range(1, len(symbols) + 1):
      prefix = ''.join(symbols[:i])
      # In a^n b^n the set after a prefix does not depend on the rest.
      if prefix not in seen:
        seen.add(prefix)
        assert legal[i - 1] == legal_by_search(name, prefix, size), prefix
  assert len(seen) >= size


@ALL
def test_strings_are_of_the_language_and_of_their_split(name):
  """If it fails, lengths leak from test to training, or strings are wrong."""
  splits = fl.generate(name, 3)
  assert {k: fl.LENGTHS[k] for k in splits} == fl.LENGTHS
  assert len(splits['train']) == 10_000
  for split, examples in splits.items():
    low, high = fl.LENGTHS[split]
    assert 0 < len(examples) <= fl.COUNTS[split]
    # The long ones are slow to rewrite; a few of them do.
    for symbols, legal in examples[: 3 if split in ('bin2', 'bin3') else 200]:
      assert low <= len(symbols) <= high
      assert MEMBER[name](''.join(symbols))
      assert len(legal) == len(symbols)
      assert fl.END in legal[-1]
      following = zip(symbols[1:], legal)
      assert all(symbol in allowed for symbol, allowed in following)
  for long in ('bin2', 'bin3'):
    sizes = [len(e.symbols) for e in splits[long]]
    low, high = fl.LENGTHS[long]
    assert max(sizes) - min(sizes) > (high - low) / 2


@ALL
def test_a_seed_decides_and_splits_are_apart(name):
  """If it fails, a result cannot be repeated, or a test string was trained."""
  first = fl.generate(name, 1, lengths=SMALL, counts=FEW)
  assert first == fl.generate(name, 1, lengths=SMALL, counts=FEW)
  assert first != fl.generate(name, 2, lengths=SMALL, counts=FEW)
  if not fl.LANGUAGES[name].single:
    strings = [e.symbols for examples in first.values() for e in examples]
    assert len(set(strings)) == len(strings)


@pytest.mark.parametrize('name', ['dyck1', 'shuffle2'])
def test_all_strings_of_a_length_are_likely_alike(name):
  """If it fails, deep or late brackets are rarer than they should be."""
  draws, length = 4000, 4
  drawn = fl.LANGUAGES[name].draw
  rng = fl.np.random.default_rng(0)
  strings = [drawn(rng, length) for _ in range(draws)]
  every = {
      ''.join(s)
      for s in itertools.product(ALPHABET[name], repeat=length)
      if MEMBER[name](''.join(s))
  }
  assert set(strings) == every
  if name == 'dyck1':
    assert abs(strings.count('(())') / draws - 0.5) < 0.04


def test_an_unknown_language_is_named():
  with pytest.raises(ValueError, match="parity, .*got 'pairity'"):
    fl.generate('pairity', 0)
  with pytest.raises(ValueError, match='multiple of 4'):
    fl.generate('abab_star', 0, lengths={'train': (2, 3)}, counts={'train': 1})


PLUG_IN = '''
import random
def evens(seed):
  n = random.Random(seed).randint(1, 9)
  return {'train': [('aa' * n, [{'a'}, {'a', 'end'}] * n)]}
def lopsided(seed):
  return {'train': [('aa', [{'a'}])]}
def untrained(seed):
  return {'bin0': []}
def listed(seed):
  return [('a', [{'a'}])]
def unpaired(seed):
  return {'train': ['aaa']}
def spelled(seed):
  return {'train': [('a', ['end'])]}
'''


def test_a_language_from_outside(tmp_path):
  """If it fails, only our own languages can be trained."""
  (tmp_path / 'mine.py').write_text(PLUG_IN)
  path = str(tmp_path / 'mine.py')
  (example,) = fl.plug_in(f'{path}:evens', 5)['train']
  assert example.symbols[:2] == ('a', 'a')
  assert example.legal[:2] == (frozenset('a'), frozenset(('a', 'end')))
  assert fl.plug_in(f'{path}:evens', 5) == fl.plug_in(f'{path}:evens', 5)
  for name, complaint in (
      ('lopsided', 'one legal set a symbol'),
      ('untrained', "must return a split 'train'"),
      ('absent', "no 'absent'"),
      ('listed', 'pairs; got list'),
      ('unpaired', 'must return split -> .* pairs'),
      ('spelled', "a set of symbols, not 'end'"),
  ):
    with pytest.raises(ValueError, match=complaint):
      fl.plug_in(f'{path}:{name}', 0)
  with pytest.raises(ValueError, match='no file'):
    fl.plug_in('nowhere.py:evens', 0)
