"""MQAR and MAD against readers that solve a row from its tokens alone."""

import numpy as np
import pytest

from hope_jax.tasks import mad, mqar


def row(arrays, i):
  asked = arrays['mask'][i] > 0
  return arrays['tokens'][i], arrays['targets'][i], np.flatnonzero(asked)


@pytest.mark.parametrize('pairs', [1, 4, 16])
def test_mqar_answers_are_the_values_of_the_list(pairs):
  """If it fails, a model is taught to recall something else."""
  length, vocab = 64, 128
  made = mqar.generate(0, 50, length=length, pairs=pairs, vocab=vocab)
  assert made['tokens'].shape == (50, length)
  for i in range(50):
    tokens, targets, asked = row(made, i)
    listed = tokens[: 2 * pairs].reshape(-1, 2)
    book = {int(k): int(v) for k, v in listed}
    assert len(book) == len(set(book.values())) == pairs
    assert max(book) < vocab // 2 <= min(book.values())
    # Every key is asked for once, after the list.
    assert sorted(tokens[asked]) == sorted(book)
    assert asked.min() >= 2 * pairs
    assert [book[int(tokens[t])] for t in asked] == list(targets[asked])


def test_zeros_fill_what_is_neither_pair_nor_query():
  """If it fails, the published figure's rows are others than it says."""
  length, pairs = 64, 4
  zeros, random = (
      mqar.generate(0, 50, length=length, pairs=pairs, vocab=128, fill=fill)
      for fill in ('zeros', 'random')
  )
  for i in range(50):
    tokens, targets, asked = row(zeros, i)
    kept = [*range(2 * pairs), *asked]
    assert np.flatnonzero(tokens).tolist() == kept
    np.testing.assert_array_equal(tokens[kept], random['tokens'][i][kept])
  for name in ('targets', 'mask'):
    np.testing.assert_array_equal(zeros[name], random[name])
  assert (random['tokens'] > 0).all()
  with pytest.raises(ValueError, match="'random' or 'zeros'; got 'ones'"):
    mqar.generate(0, 1, length=8, pairs=1, fill='ones')


def test_a_mixture_has_as_many_rows_of_each_kind():
  """If it fails, one model is trained on less, or more, than the mixture."""
  lengths, pairs, vocab = (16, 64), (2, 8), 128
  made = mqar.mixture(
      5, 21, lengths=lengths, pairs=pairs, vocab=vocab, fill='zeros'
  )
  assert made['tokens'].shape == made['mask'].shape == (21, 64)
  found = []
  for i in range(21):
    tokens, targets, asked = row(made, i)
    book = dict(tokens[: 2 * len(asked)].reshape(-1, 2).tolist())
    assert [book[t] for t in tokens[asked]] == targets[asked].tolist()
    assert asked.max() < dict(zip(pairs, lengths))[len(asked)]
    found.append(len(asked))
  assert found == [2] * 11 + [8] * 10
  one = mqar.mixture(5, 4, lengths=(64,), pairs=(8,), vocab=vocab)
  same = mqar.generate(5, 4, length=64, pairs=8, vocab=vocab)
  assert all((one[name] == same[name]).all() for name in same)
  with pytest.raises(ValueError, match='got 1 for 2'):
    mqar.mixture(5, 4, lengths=(64,), pairs=(4, 8))


def test_mqar_gaps_follow_their_power_law():
  """If it fails, queries are nearer or farther than published."""
  made = mqar.generate(1, 4000, length=20, pairs=1, vocab=64)
  gaps = (np.argmax(made['mask'], axis=1) - 2) // 2
  expected = np.arange(1.0, 10) ** -0.99
  expected /= expected.sum()
  share = np.bincount(gaps, minlength=9) / 4000
  np.testing.assert_allclose(share, expected, atol=0.03)


def test_mqar_says_what_does_not_fit():
  with pytest.raises(ValueError, match='length=8, pairs=3'):
    mqar.generate(0, 1, length=8, pairs=3)
  with pytest.raises(ValueError, match='at most the 3 keys'):
    mqar.generate(0, 1, length=64, pairs=4, vocab=8)


def recall(tokens, motif):
  """Answers by looking back: where the last `motif` tokens stood before."""
  answers = {}
  for t in range(len(tokens)):
    key = tuple(tokens[t + 1 - motif : t + 1])
    for s in range(t - 1, motif - 2, -1):
      if tuple(tokens[s + 1 - motif : s + 1]) == key:
        answers[t] = tokens[s + 1]
        break
  return answers


@pytest.mark.parametrize(
    'task', ['in_context_recall', 'noisy_in_context_recall']
)
def test_recall_is_solved_by_looking_back(task):
  """If it fails, a row does not hold its own answers, or noise is asked for."""
  made = mad.generate(task, 0, 100)
  noise = made['tokens'] >= 16
  assert (noise.mean() > 0.1) == (task == 'noisy_in_context_recall')
  for i in range(100):
    tokens, targets, asked = row(made, i)
    answers = recall(tokens, 1)
    assert len(asked) > 20
    for t in asked:
      assert tokens[t] < 8 <= targets[t] < 16 and t % 2 == 0
      assert answers[t] == targets[t] == tokens[t + 1]


def segments(tokens, half, pad):
  """(key, value) of a fuzzy row: runs of lower tokens, then of upper ones."""
  pairs, key, value = [], [], []
  for t in [t for t in tokens if t != pad]:
    if t < half and value:
      pairs.append((tuple(key), tuple(value)))
      key, value = [], []
    (key if t < half else value).append(int(t))
  return pairs + [(tuple(key), tuple(value))]


def test_fuzzy_recall_asks_for_whole_values():
  """If it fails, parts of a value, or of another key's, are asked for."""
  made = mad.generate('fuzzy_in_context_recall', 0, 200)
  sizes = set()
  for i in range(200):
    tokens, targets, asked = row(made, i)
    book, expected = {}, []
    for key, value in segments(tokens, 7, 15):
      sizes |= {len(key), len(value)}
      if key in book:
        assert book[key] == value
        expected += value
      book[key] = value
    assert [targets[t] for t in asked] == expected
    assert [tokens[t + 1] for t in asked if t + 1 < 128] == expected[: sum(
        t + 1 < 128 for t in asked
    )]
  assert sizes == {1, 2, 3}


def test_selective_copying_keeps_the_order():
  made = mad.generate('selective_copying', 0, 50)
  starts = []
  for i in range(50):
    tokens, targets, asked = row(made, i)
    assert len(tokens) == 256 and tokens[239] == 15
    content = tokens[:239][tokens[:239] != 14]
    np.testing.assert_array_equal(targets[asked], content)
    np.testing.assert_array_equal(asked, np.arange(240, 256))
    assert (tokens[asked] == 14).all()
    starts.append(np.argmax(tokens != 14))
  assert len(set(starts)) > 5  # not bunched up at one end


def test_the_published_selective_copying_spreads_its_blanks():
  """If it fails, the option is not the published generator's distribution.

  There each blank picks the token that it is put in front of: the gaps are
  multinomial, and the last token is next to the mark.
  """
  made = mad.generate('selective_copying', 0, 400, spread='blanks')
  gaps = []
  for i in range(400):
    tokens, targets, asked = row(made, i)
    places = np.flatnonzero(tokens[:239] != 14)
    assert places[-1] == 238 and tokens[239] == 15
    np.testing.assert_array_equal(targets[asked], tokens[places])
    gaps.append(np.diff(places, prepend=-1) - 1)
  gaps = np.stack(gaps)
  assert gaps.shape == (400, 16) and (gaps.sum(axis=1) == 223).all()
  share = 1 / 16
  np.testing.assert_allclose(gaps.mean(axis=0), 223 * share, rtol=0.06)
  np.testing.assert_allclose(
      gaps.var(), 223 * share * (1 - share), rtol=0.1
  )
  # Where places are drawn, gaps differ by far more.
  even = mad.generate('selective_copying', 0, 400)['tokens'][:, :239] != 14
  drawn = np.concatenate([np.diff(np.flatnonzero(row)) for row in even])
  assert drawn.var() > 5 * gaps.var()
  with pytest.raises(ValueError, match="'tokens' or 'blanks'; got 'noise'"):
    mad.generate('selective_copying', 0, 1, spread='noise')


def test_memorization_is_one_map_for_all_rows_and_seeds():
  """If it fails, test rows ask for what training could not teach."""
  books = []
  for seed in (0, 1):
    made = mad.generate('memorization', seed, 300)
    book = {}
    for i in range(300):
      tokens, targets, asked = row(made, i)
      assert (tokens[asked] == 255).all()
      for t in asked:
        assert book.setdefault(tokens[t - 1], targets[t]) == targets[t]
    assert len(set(book.values())) == len(book) == 127
    books.append(book)
  assert books[0] == books[1]


def test_compression_is_said_from_blanks():
  made = mad.generate('compression', 0, 20)
  for i in range(20):
    tokens, targets, asked = row(made, i)
    assert tokens[31] == 15 and (tokens[32:] == 14).all()
    np.testing.assert_array_equal(targets[asked], tokens[:31])
    np.testing.assert_array_equal(asked, np.arange(32, 63))


@pytest.mark.parametrize('task', list(mad.TASKS))
def test_a_seed_decides_and_difficulty_can_change(task):
  base = mad.TASKS[task]
  assert (base.vocab, base.length) in ((16, 128), (32, 128), (16, 256),
                                       (256, 32), (16, 32))
  one, same = (mad.generate(task, 5, 4) for _ in range(2))
  assert all((one[k] == same[k]).all() for k in one)
  assert (one['tokens'] != mad.generate(task, 6, 4)['tokens']).any()
  harder = mad.generate(task, 0, 2, vocab=64, length=base.length * 2)
  assert harder['tokens'].shape[1] > one['tokens'].shape[1]
  assert harder['tokens'].max() < 64
  with pytest.raises(ValueError, match="got 'recal'"):
    mad.generate('recal', 0, 1)
