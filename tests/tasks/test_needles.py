"""Needles, found again in the text by a regular expression."""

import re

import numpy as np
import pytest

from hope_jax.tasks import needles

ALL = pytest.mark.parametrize('task', list(needles.TASKS))
CODE = r'\d{7}|[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-\w{12}'
SENTENCE = re.compile(rf'The code of the (\w+ \w+) is ({CODE})\. ')


def read(arrays, i):
  """(text, what is asked of the model) of a row of bytes."""
  asked = np.flatnonzero(arrays['mask'][i])
  size = asked[-1] + 2
  text = bytes(arrays['tokens'][i, :size].tolist()).decode()
  answer = bytes(arrays['targets'][i, asked].tolist()).decode()
  assert (np.diff(asked) == 1).all() and text.endswith(answer)
  return text, answer


@ALL
def test_the_answer_is_in_the_text(task):
  """If it fails, a model is asked for what the row does not say."""
  made = needles.generate(task, 0, 20, length=2048)
  for i in range(20):
    text, answer = read(made, i)
    found = SENTENCE.findall(text)
    names = {name for name, _ in found}
    kind = needles.TASKS[task]
    assert len(names) == kind.names and len(found) == kind.names * kind.codes
    question = text[: -len(answer)].splitlines()[-1]
    asked = re.findall(r'of the (\w+ \w+)[,?]', question)
    assert len(asked) == kind.asked
    expected = [code for name in asked for n, code in found if n == name]
    assert answer == ', '.join(expected) + '.'
    # Nothing else in the row gives the answer away.
    for code in expected:
      assert text.count(code) == 2
    assert 2048 - 80 < len(text) <= 2048


@ALL
def test_parts_are_the_codes(task):
  """If it fails, part credit is of other tokens than a code's."""
  made = needles.generate(task, 0, 5, length=1200)
  kind = needles.TASKS[task]
  for i in range(5):
    _, answer = read(made, i)
    parts = made['parts'][i]
    np.testing.assert_array_equal(parts > 0, made['mask'][i] > 0)
    said = [
        bytes(made['targets'][i, parts == n].tolist()).decode()
        for n in range(1, parts.max() + 1)
    ]
    assert ''.join(said) == answer
    assert [s.strip(' ,.') for s in said] == answer[:-1].split(', ')
    assert len(said) == kind.asked * kind.codes


def test_each_task_has_its_haystack():
  """If it fails, the easy haystack is used for all, or none."""
  for task, repeats in (('s_niah_1', True), ('s_niah_2', False)):
    text, _ = read(needles.generate(task, 0, 1, length=4096), 0)
    sentences = SENTENCE.sub('', text).split('. ')[1:-1]
    assert (len(set(sentences)) <= 5) == repeats
    assert repeats or len(set(sentences)) > 0.95 * len(sentences)


@ALL
def test_a_packed_row_is_texts_with_their_answers(task):
  """If it fails, training asks for codes of another text, or for none."""
  made = needles.pack(task, 0, 10, length=1200)
  texts = 0
  for i in range(10):
    tokens, targets, mask = (made[x][i] for x in ('tokens', 'targets', 'mask'))
    asked = np.flatnonzero(mask)
    np.testing.assert_array_equal(targets[asked], tokens[asked + 1])
    ends = asked[np.flatnonzero(np.diff(asked, append=len(mask)) > 1)] + 2
    start = number = 0
    for end in ends:
      text = bytes(tokens[start:end].tolist()).decode()
      answer = bytes(targets[asked[(asked >= start) & (asked < end)]].tolist())
      answer = answer.decode()
      assert text.startswith(needles.INTRODUCTION) and text.endswith(answer)
      question = text[: -len(answer)].splitlines()[-1]
      names = re.findall(r'of the (\w+ \w+)[,?]', question)
      found = SENTENCE.findall(text)
      expected = [code for name in names for n, code in found if n == name]
      assert answer == ', '.join(expected) + '.'
      number += 1
      assert (made['segment_ids'][i, start:end] == number).all()
      start = end
    assert not tokens[start:].any() and not made['segment_ids'][i, start:].any()
    texts += number
  assert texts > 10
  with pytest.raises(ValueError, match='without haystack'):
    needles.pack(task, 0, 1, length=100)


@ALL
@pytest.mark.parametrize('depth', [0.0, 0.25, 1.0])
def test_depth_is_where_the_first_needle_asked_for_stands(task, depth):
  """If it fails, the heat map's axis is not what it says."""
  made = needles.generate(task, 0, 12, length=4096, depth=depth)
  np.testing.assert_allclose(made['depth'], depth, atol=0.02)
  others = []
  for i in range(12):
    text, answer = read(made, i)
    places = {
        m.group(2): m.start() / len(text) for m in SENTENCE.finditer(text)
    }
    asked = [places.pop(code) for code in answer.rstrip('.').split(', ')]
    assert abs(min(asked) - depth) < 0.1
    others += [*places.values(), *(x for x in asked if x != min(asked))]
  kind = needles.TASKS[task]
  assert len(others) == 12 * (kind.names * kind.codes - 1)
  if others and depth < 1:
    # They do not stand beside it, as they do not in training.
    assert np.mean(np.abs(np.array(others) - depth) < 0.05) < 0.3
  if task == 'mk_niah':  # before it, too
    assert min(others) < 0.1 and max(others) > 0.8


@ALL
def test_needles_are_spread_and_a_seed_decides(task):
  """If it fails, a model can learn where to look."""
  made = needles.generate(task, 1, 60, length=2048)
  again = needles.generate(task, 1, 60, length=2048)
  assert all((made[k] == again[k]).all() for k in made)
  other = needles.generate(task, 2, 60, length=2048)
  assert (made['tokens'] != other['tokens']).any()
  # The first of four stands early more often than one does.
  kind = needles.TASKS[task]
  assert made['depth'].min() < 0.15
  assert made['depth'].max() > (0.4 if kind.asked * kind.codes > 1 else 0.7)


def test_any_tokenizer_will_do():
  """If it fails, only bytes can be trained on."""
  words = {}

  def encode(text):
    return [words.setdefault(w, len(words)) for w in re.findall(r'\S+', text)]

  made = needles.generate('mq_niah', 0, 3, length=300, encode=encode)
  names = list(words)
  for i in range(3):
    asked = made['mask'][i] > 0
    answer = [names[t] for t in made['targets'][i, asked]]
    assert len(answer) == 4 and all(re.match(r'\d{7}[,.]$', w) for w in answer)
    text = ' '.join(names[t] for t in made['tokens'][i])
    assert all(f'is {w[:-1]}.' in text for w in answer)


def test_mistakes_are_named():
  for arguments, complaint in (
      (dict(task='s_niah_4', length=500), "got 's_niah_4'"),
      (dict(task='s_niah_1', length=50), 'length=50'),
      (dict(task='s_niah_1', length=500, depth=2.0), 'depth must be in'),
  ):
    with pytest.raises(ValueError, match=complaint):
      needles.generate(seed=0, count=1, **arguments)
