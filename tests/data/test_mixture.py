"""Mixtures: shares, order, places, and what is held out of each source."""

import json

import numpy as np
import pytest

from hope_jax import config as config_lib
from hope_jax import data
from hope_jax.config import ConfigError, DataConfig, experiment
from hope_jax.data import pipeline
from tests.data.resuming import assert_resumes


def _corpus(folder):
  """Three sources whose bytes tell which they are: a.., b.., c.."""
  for letter, count in (('a', 30), ('b', 5), ('c', 12)):
    (folder / letter).mkdir()
    for i in range(count):
      (folder / letter / f'{i}.txt').write_bytes(letter.encode() * (50 + i))
  (folder / 'c.jsonl').write_text(''.join(
      json.dumps({'text': 'c' * (40 + i)}) + '\n' for i in range(12)
  ))
  return tuple(str(folder / p) for p in ('a/*.txt', 'b/*.txt', 'c.jsonl'))


def _config(paths, weights=(6, 3, 1), **fields):
  mixture = tuple(f'{p}={w}' for p, w in zip(paths, weights))
  fields = dict(
      sequence_length=16, batch_size=4, align=1, holdout=0.2
  ) | fields
  return DataConfig(mixture=mixture, **fields)


@pytest.fixture
def paths(tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, '_WINDOW_TOKENS', 256)
  return _corpus(tmp_path)


def _letters(batches):
  rows = np.concatenate([b['targets'][:, 0] for b in batches])
  return [chr(int(letter)) for letter in rows]


@pytest.mark.parametrize('weights', [(6, 3, 1), (0.5, 0.3, 0.2), (1, 1e-3, 7)])
def test_rows_come_by_weight(paths, weights):
  """A failure means that a source is more, or less, of the training than asked.

  At every window's end, not only in the long run.
  """
  stream = data.train_batches(_config(paths, weights))
  found = _letters(next(stream) for _ in range(100))
  shares = np.array(weights) / sum(weights)
  for count in range(16, 401, 16):
    for letter, share in zip('abc', shares):
      assert abs(found[:count].count(letter) - share * count) < 3


def test_a_mixture_resumes_anywhere(paths):
  """A failure means that a resumed run of several sources is another run."""
  for fields in ({}, {'interleave': 2}):
    config = _config(paths, **fields)
    assert_resumes(config, batches=14, places=(0, 1, 4, 12), following=5)


def test_each_source_is_held_out_of(paths):
  """A failure means held-out text in training, or a source without a score."""
  config = _config(paths)
  whole = data.heldout_text(config)
  each = [data.heldout_text(config, source) for source in paths]
  assert [set(text.decode()) for text in each] == [{'a'}, {'b'}, {'c'}]
  assert sorted(whole) == sorted(b''.join(each))
  assert len(data.train_text(config)) + len(whole) == (
      sum(50 + i for i in range(30)) + sum(50 + i for i in range(5))
      + sum(40 + i for i in range(12))
  )
  for source, text in zip(paths, each):
    batches = list(data.heldout_batches(config, source=source))
    assert sum(b['target_bytes'].sum() for b in batches) == len(text)
  # The first batches are of all of them.
  limited = data.heldout_batches(config, limit=4)
  assert len(set(_letters(limited))) > 1
  with pytest.raises(ConfigError, match='no source'):
    data.heldout_text(config, 'd')


def test_processes_and_seeds(paths):
  """A failure means hosts on the same rows, or seeds without effect."""
  config = _config(paths)
  first, second = (
      data.train_batches(config, process_index=i, process_count=2)
      for i in range(2)
  )
  a, b = next(first), next(second)
  assert a['tokens'].shape == (2, 16)
  assert _letters([a]) and not np.array_equal(a['target_bytes'], 0)
  del b
  order = lambda c: _letters(next(data.train_batches(c)) for _ in range(3))
  assert order(config) == order(config)
  assert order(config) != order(_config(paths, seed=1))


def test_one_source_is_as_ever(paths):
  """A failure means that a mixture of one is another run than its source."""
  one = _config(paths[:1])
  plain = DataConfig(source='files', path=paths[0], sequence_length=16,
                     batch_size=4, align=1, holdout=0.2)
  a, b = data.train_batches(one), data.train_batches(plain)
  for _ in range(9):
    np.testing.assert_array_equal(next(a)['tokens'], next(b)['tokens'])


def test_how_a_mixture_is_written():
  """A failure means that the command line, a file and Python disagree."""
  wanted = ('books/*.jsonl=3', 'tfds:c4@train=0.5', 'stdlib=1')
  text = 'books/*.jsonl=3,tfds:c4@train=0.5,stdlib=1'
  values = {}
  experiment.override(values, [('data.mixture', text)], config_lib.Config)
  config = config_lib.from_dict(values)
  assert config.data.mixture == wanted
  as_dict = {'books/*.jsonl': 3, 'tfds:c4@train': 0.5, 'stdlib': 1}
  assert DataConfig(mixture=as_dict) == config.data
  # As config.json holds it.
  plain = json.loads(json.dumps(config_lib.to_dict(config)))
  assert config_lib.from_dict(plain) == config
  assert [(p, w, c.source, c.path) for p, w, c in config.data.parts()] == [
      ('books/*.jsonl', 3, 'files', 'books/*.jsonl'),
      ('tfds:c4@train', 0.5, 'tfds', 'c4@train'),
      ('stdlib', 1, 'stdlib', ''),
  ]


@pytest.mark.parametrize('fields,what', [
    ({'mixture': ('a',)}, 'PATH=WEIGHT'),
    ({'mixture': ('a=0',)}, 'positive'),
    ({'mixture': ('a=-1',)}, 'positive'),
    ({'mixture': ('a=nan',)}, 'positive'),
    ({'mixture': ('a=inf',)}, 'positive'),
    ({'mixture': ('=1',)}, 'PATH=WEIGHT'),
    ({'mixture': {'a': 'b'}}, 'PATH=WEIGHT'),
    ({'mixture': ('a=1', 'a=2')}, 'twice'),
    ({'mixture': ('a=1',), 'path': 'b', 'source': 'files'}, 'leave source'),
    ({'mixture': (('a', 1),)}, 'must be str'),
])
def test_a_wrong_mixture_is_one_line(fields, what):
  """A failure means a traceback, or a source that is left out unsaid."""
  with pytest.raises(ConfigError, match=what) as caught:
    config_lib.from_dict({'data': fields})
  assert '\n' not in str(caught.value)


def test_too_little_of_one_source(paths, tmp_path):
  """A failure means rows of copies of a short text among the others."""
  (tmp_path / 'short.txt').write_bytes(b'short')
  short = str(tmp_path / 'short.txt')
  with pytest.raises(ConfigError, match='short.txt') as caught:
    data.train_batches(_config((*paths[:2], short)))
  assert '\n' not in str(caught.value)
