"""MAD, MQAR and needles: what is tested, and how it is shown."""

import dataclasses
import json
import pathlib
import re
import xml.etree.ElementTree
import zlib

import numpy as np
import pytest

from hope_jax.config import ConfigError
from hope_jax.data import tokenizer
from hope_jax.report import charts
from hope_jax.studies import grid, recall, runner
from hope_jax.studies.task import Cell
from hope_jax.tasks import mqar, needles

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ('name', 'row', 'column', 'figure'),
    [
        ('mad', 'DeltaNet', 'memorization', None),
        ('mqar', 'DeltaNet 32', '4', 'state'),
        ('needles', 'Transformer', 's_niah_1', 's_niah_1_transformer'),
    ],
)
def test_the_tiny_forms_of_recall(tmp_path, name, row, column, figure):
  """If it fails, a task of recall cannot be trained, scored or drawn."""
  path = str(ROOT / 'experiments' / f'{name}.py')
  assert list(grid.cells(grid.load(path)))
  assert runner.command(
      f'{path}:tiny', [('rows_run', row), ('columns_run', column)],
      workdir=str(tmp_path / 'results'),
  ) == 0
  (file,) = (tmp_path / 'results').glob('*.json')
  scores = json.loads(file.read_text())['scores']
  assert all(0 <= x <= 1 for x in scores['answers'].values())
  assert scores['state_bytes'] > 0 and scores['parameters'] > 0
  if figure:
    svg = (tmp_path / 'results' / f'{figure}.svg').read_text()
    xml.etree.ElementTree.fromstring(svg)


def test_needles_are_tested_by_length_with_as_many_bytes(monkeypatch):
  """If it fails, attention is tested beyond its window, or lengths unevenly."""
  path = str(ROOT / 'experiments' / 'needles.py')
  study = grid.load(f'{path}:tiny', [
      ('lengths.test', '256,512,1024'), ('counts.test', '3'),
  ])
  seen = {}

  def run(config, arrays, tests, vocab, decode):
    seen.update({name: x['tokens'].shape for name, x in tests.items()})
    return {}

  monkeypatch.setattr(recall, '_run', run)
  for row, window, lengths in (
      ('Hope', 512, (256, 512, 1024)), ('Transformer', 512, (256, 512)),
  ):
    seen.clear()
    cell = Cell(row, 's_niah_1', 0)
    config = grid.config_of(study, cell)
    model = dataclasses.replace(config.model, attention_window=window)
    recall.run_needles(dataclasses.replace(config, model=model), cell, study)
    assert seen == {
        f'{n} {depth}': (max(1, 3 * 256 // n), n)
        for n in lengths
        for depth in (0.0, 1.0)
    }


def test_needles_of_any_tokenizer_ask_a_question_of_their_own(monkeypatch):
  """If it fails, bytes alone can be run, or a mean is over one question."""
  study = grid.load(
      str(ROOT / 'experiments' / 'needles.py') + ':tiny'
  )
  cell = Cell('Hope', 's_niah_1', 0)
  config = grid.config_of(study, cell)
  seen = {}

  class Words:
    """A token for each space or run of other characters."""

    vocab_size = 1000

    def encode(self, text):
      parts = re.findall(rb' |[^ ]+', text)
      ids = np.array([zlib.crc32(part) % 1000 for part in parts])
      return tokenizer.Encoded(ids, np.array([len(part) for part in parts]))

    def decode(self, ids):
      return b' '.join(b'%d' % i for i in ids)

  def run(config, arrays, tests, vocab, decode):
    seen.update(tests=tests, vocab=vocab)
    return {}

  monkeypatch.setattr(recall, '_run', run)
  recall.run_needles(config, cell, study)
  answers = [x['targets'][x['mask'] > 0].tobytes()
             for x in seen['tests'].values()]
  assert seen['vocab'] == 256 and len(set(answers)) == len(answers) == 4
  monkeypatch.setattr(tokenizer, 'load_tokenizer', lambda data: Words())
  recall.run_needles(config, cell, study)
  assert seen['vocab'] == 1000
  assert all(x['tokens'].max() > 255 for x in seen['tests'].values())


def test_the_needles_tables_keep_the_order_of_lengths():
  """If it fails, columns are mixed up where rows have different lengths."""
  results = [
      {
          'row': row, 'column': 's_niah_1', 'seed': 0,
          'scores': {
              kind: {f'{n} {d}': share * d for n in lengths for d in (0, 1)}
              for kind, share in (('answers', 1.0), ('exact', 0.5))
          },
      }
      for row, lengths in (('A', (8, 16)), ('B', (8, 16, 32)))
  ]
  bytes_right, whole = recall.needle_tables(results).values()
  assert list(dict.fromkeys(c for _, c in bytes_right)) == [
      'seeds', '8', '16', '32'
  ]
  assert bytes_right['B', '32'] == '50.0' and whole['A', '8'] == '25.0'


def test_part_credit_is_shown_where_there_is_one():
  """If it fails, results from before it cannot be rendered, or it is lost."""
  scores = {
      'old': {'answers': {'8 0': 0.5}, 'exact': {'8 0': 0.0}},
      'new': {
          'answers': {'8 0': 0.5}, 'exact': {'8 0': 0.0},
          'parts': {'8 0': 0.25}, 'generated': {'8 0': 0.75},
      },
  }
  results = [
      {'row': row, 'column': 'mv_niah', 'seed': 0, 'scores': scores[row]}
      for row in scores
  ]
  drawn = recall.needle_tables(results)
  assert len(drawn) == 4
  *_, (title, parts), (_, written) = drawn.items()
  assert 'part credit' in title
  assert parts == {('new', 'seeds'): '1', ('new', '8'): '25.0'}
  assert written['new', '8'] == '75.0'
  assert len(recall.needle_tables(results[:1])) == 2


@pytest.fixture
def made(monkeypatch):
  """What a cell trains on and is tested on, in place of running it."""
  seen = {}

  def run(config, arrays, tests, vocab):
    seen.update(arrays=arrays, tests=tests, vocab=vocab)
    return {}

  monkeypatch.setattr(recall, '_run', run)
  return seen


def test_a_mixture_of_pairs_is_tested_on_each(made):
  """If it fails, one model's columns are not those of the others' rows."""
  path = str(ROOT / 'experiments' / 'mqar.py:tiny')
  study = grid.load(path, [
      ('columns', '2+4'), ('lengths.length', '16,32'), ('counts.train', '6'),
      ('options.fill', 'zeros'),
  ])
  (cell,) = (c for c in grid.cells(study) if c.row == 'Hope 60')
  recall.run_mqar(grid.config_of(study, cell), cell, study)
  assert made['arrays']['tokens'].shape == (6, 32)
  assert (made['arrays']['mask'].sum(axis=1) == [2, 2, 2, 4, 4, 4]).all()
  assert list(made['tests']) == ['2', '4']
  for number, length in (('2', 16), ('4', 32)):
    same = mqar.generate(
        recall.TEST_SEED, 4, length=length, pairs=int(number), vocab=64,
        fill='zeros',
    )
    for name, x in made['tests'][number].items():
      np.testing.assert_array_equal(x, same[name])
  # The rows of a number alone stay what they were, whatever else there is.
  alone = grid.load(path)
  cell = cell._replace(column='4')
  recall.run_mqar(grid.config_of(alone, cell), cell, alone)
  same = mqar.generate(0, 8, length=32, pairs=4, vocab=64)
  np.testing.assert_array_equal(made['arrays']['tokens'], same['tokens'])
  assert list(made['tests']) == ['test']


def test_a_mixture_is_shown_by_number_of_pairs():
  """If it fails, it is drawn among those that were trained on one number."""
  results = [
      {
          'row': 'A 8', 'column': column, 'seed': 0,
          'settings': {'model': {'architecture': 'deltanet'}},
          'scores': {'state_bytes': 64, 'answers': shares, 'exact': shares},
      }
      for column, shares in (
          ('4', {'test': 1.0}), ('4+8', {'4': 0.5, '8': 0.25}),
      )
  ]
  drawn = recall.mqar_tables(results)
  mixed = drawn['Trained on 4+8 pairs at once: right answers, %']
  assert mixed == {('A 8', '4 pairs'): '50.0', ('A 8', '8 pairs'): '25.0'}
  assert set(recall.mqar_tables(results[:1])) == set(drawn) - {
      'Trained on 4+8 pairs at once: right answers, %'
  }
  figures = recall.mqar_figures(results)
  assert 'A 8, trained on 4+8' in figures['pairs']
  assert 'mean over 4 pairs' in figures['state']


def test_options_reach_the_tasks_that_know_them(made):
  """If it fails, published forms cannot be run, or break the other tasks."""
  path = str(ROOT / 'experiments' / 'mad.py:tiny')
  study = grid.load(path, [('options.spread', 'blanks')])
  for column in study.columns:
    cell = Cell('Hope', column, 0)
    recall.run_mad(grid.config_of(study, cell), cell, study)
    if column == 'selective_copying':
      # The last token is next to the mark.
      assert (made['arrays']['tokens'][:, 238] != 14).all()
  cell = Cell('Hope', 'selective_copying', 0)
  data = grid.asked(study, cell)['data']
  assert data['options'] == {'spread': 'blanks'}
  assert 'options' not in grid.asked(grid.load(path), cell)['data']
  wrong = grid.load(path, [('options.spread', 'noise')])
  with pytest.raises(ConfigError, match="'blanks'; got 'noise'"):
    recall.run_mad(grid.config_of(wrong, cell), cell, wrong)
  with pytest.raises(ConfigError, match="options: 'fill' is none of copies"):
    grid.load(path, [('options.fill', 'zeros')])


def test_states_are_compared_on_the_same_numbers_of_pairs():
  """If it fails, a row that was tested on easy rows alone looks better."""
  results = [
      {
          'row': row, 'column': pairs, 'seed': 0,
          'settings': {'model': {'architecture': 'deltanet'}},
          'scores': {'state_bytes': size, 'answers': {'test': share}},
      }
      for row, size, found in (
          ('A 8', 64, {'4': 1.0, '8': 0.5}), ('A 16', 256, {'8': 0.5}),
      )
      for pairs, share in found.items()
  ]
  drawing = recall.mqar_figures(results)['state']
  assert 'mean over 8 pairs' in drawing
  # The line, and its sign in the legend: both level.
  found = re.findall(
      rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {charts.COLOURS[0]};'
      ' stroke-width: 1.6', drawing,
  )
  assert len(found) == 2
  for line in found:
    assert len({y for _, y in re.findall(r'[ML] (\S+) (\S+)', line)}) == 1


@pytest.mark.parametrize('task', needles.TASKS)
def test_texts_of_the_tiny_needles_hold_theirs(task):
  """If it fails, the first try of a reader ends in the middle."""
  study = grid.load(str(ROOT / 'experiments' / 'needles.py:tiny'))

  def encode(text):
    return list(text.encode())

  assert task in study.columns
  lengths = study.lengths
  needles.pack(
      task, 0, study.counts['train'], length=lengths['train'], encode=encode
  )
  for seed in range(20):
    for depth in lengths['depths']:
      needles.generate(
          task, seed, 1, length=min(lengths['test']), depth=depth,
          encode=encode,
      )
