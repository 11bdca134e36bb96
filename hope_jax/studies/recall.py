"""Trains and scores what a model recalls: MQAR, MAD and needles."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import math
import statistics
from typing import Any

import jax
import numpy as np

from hope_jax import sharding
from hope_jax.config import Config, ConfigError, StudyConfig
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.data import tokenizer as tokenizer_lib
from hope_jax.evals import labelled
from hope_jax.report import charts
from hope_jax.studies import tables, training
from hope_jax.studies.results import Entries, Result, by_cell, slug
from hope_jax.studies.task import Cell, Task
from hope_jax.tasks import mad, mqar, needles
from hope_jax.tasks.labelling import Arrays, at_positions

SPLITS = ('train', 'test')
# What a result calls the scores of `evals.labelled`.
SCORES = {
    'answers': 'positions',
    'exact': 'exact',
    'parts': 'parts',
    'generated': 'generated',
}
# Added to a cell's seed for its test rows.
TEST_SEED = 1_000_000


def _run(
    config: Config,
    arrays: Arrays,
    tests: dict[str, Arrays],
    vocab: int,
    decode: Callable[[np.ndarray], bytes] | None = None,
) -> dict[str, Any]:
  """Trains, then scores each test: name -> share of right answers.

  decode: token ids -> text; answers are then also written by the model itself.
  """
  model, params, facts = training.on_labels(
      config, at_positions(arrays), vocab
  )
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    found = {
        name: labelled.evaluate(
            model, params, at_positions(test), config.data.batch_size
        )
        for name, test in tests.items()
    }
    if decode:
      for name, test in tests.items():
        found[name]['generated'] = labelled.generated(
            model, params, test, decode
        )
  return facts | {
      kind: {name: scores[of] for name, scores in found.items()}
      for kind, of in SCORES.items()
      if all(of in scores for scores in found.values())
  }


def run_mad(
    config: Config, cell: Cell, study: StudyConfig
) -> dict[str, Any]:
  """A task of MAD at its base difficulty; see `tasks.mad`.

  Args:
    config: the run.
    cell: its column is the task.
    study: its `counts` has rows to train on and to test; `options` what else
      the difficulty consists of, for the tasks that know it.

  Returns:
    'answers' and 'exact': 'test' -> share of answers, of rows, that are right;
    'steps', 'loss', 'tokens_per_second'.

  Raises:
    ConfigError: there are no such rows.
    Stopped: by a signal.
  """
  base, seed = mad.TASKS[cell.column], config.data.seed
  counts = {'train': base.train, 'test': base.test} | study.counts
  options = {k: v for k, v in study.options.items() if k in base.options}
  with _refusing():
    train, test = (
        mad.generate(cell.column, first, counts[split], **options)
        for split, first in (('train', seed), ('test', seed + TEST_SEED))
    )
  return _run(config, train, {'test': test}, base.vocab)


def run_mqar(
    config: Config, cell: Cell, study: StudyConfig
) -> dict[str, Any]:
  """MQAR; the column is the number of pairs. Arguments as above.

  A column such as '4+8+16' trains one model on equally many rows of each of
  these numbers, and tests each by itself: 'answers' has '4', '8' and '16', on
  the rows that these columns have.

  `study.lengths` has 'length', tokens of a row (512), or of a mixture one for
  each number, and 'vocab' (8,192); `study.options` has 'fill'.
  """
  sizes = {'length': 512, 'vocab': 8192} | study.lengths
  counts = {'train': 100_000, 'test': 1000} | study.counts
  numbers = cell.column.split('+')
  lengths = sizes['length']
  if isinstance(lengths, int):
    lengths = [lengths] * len(numbers)
  options = {'vocab': sizes['vocab'], **study.options}
  seed = config.data.seed
  with _refusing():
    train = mqar.mixture(
        seed, counts['train'], lengths=lengths, pairs=list(map(int, numbers)),
        **options,
    )
    tests = {
        number if len(numbers) > 1 else 'test': mqar.generate(
            seed + TEST_SEED, counts['test'], length=length,
            pairs=int(number), **options,
        )
        for number, length in zip(numbers, lengths)
    }
  return _run(config, train, tests, sizes['vocab'])


@contextlib.contextmanager
def _refusing():
  """What a generator refuses, a study's fields ask for."""
  try:
    yield
  except ValueError as error:
    raise ConfigError(str(error)) from error


def run_needles(
    config: Config, cell: Cell, study: StudyConfig
) -> dict[str, Any]:
  """Needles in text: trained short, tested by length and depth.

  Lengths are tokens of `data.tokenizer`, which are bytes by default. Softmax
  attention is tested up to its window. Arguments as above.
  `study.lengths` has 'train' (1,024), 'test' (1K to 64K) and 'depths' (0, 1/4,
  ..., 1); names of tests are 'LENGTH DEPTH'. `study.counts` has rows to train
  on, and to test at the shortest length and each depth; at longer ones there
  are fewer, so that they have as many bytes, but at least one.
  """
  options = {
      'train': 1024,
      'test': (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536),
      'depths': (0.0, 0.25, 0.5, 0.75, 1.0),
  } | study.lengths
  counts = {'train': 20_000, 'test': 20} | study.counts
  seed, model = config.data.seed, config.model
  tokenizer = tokenizer_lib.load_tokenizer(config.data)

  def encode(text):
    return tokenizer.encode(text.encode()).ids.tolist()

  lengths = sorted(options['test'])
  if ARCHITECTURES[model.architecture].window:
    lengths = [n for n in lengths if n <= model.attention_window]
  tests = {
      f'{length} {depth}': needles.generate(
          cell.column, (seed + TEST_SEED, length, i),
          max(1, counts['test'] * lengths[0] // length),
          length=length, depth=depth, encode=encode,
      )
      for length in lengths
      for i, depth in enumerate(options['depths'])
  }
  arrays = needles.pack(
      cell.column, seed, counts['train'], length=options['train'],
      encode=encode,
  )
  return _run(config, arrays, tests, tokenizer.vocab_size, tokenizer.decode)


def _mean(values: list[float]) -> str:
  """Percent, with the standard deviation where there are several."""
  mean = f'{100 * statistics.fmean(values):.1f}'
  return mean if len(values) < 2 else (
      f'{mean} ± {100 * statistics.stdev(values):.1f}'
  )


def recall_tables(results: list[Result]) -> dict[str, Entries]:
  """Right answers, and rows with every answer right, over all tests."""
  cells = by_cell(results)

  def table(kind):
    share = lambda result: statistics.fmean(result['scores'][kind].values())
    return {k: _mean([share(r) for r in found]) for k, found in cells.items()}

  return {
      'Right answers, %, mean ± deviation over seeds': table('answers'),
      'Rows with every answer right, %': table('exact'),
      'Seeds': {key: str(len(found)) for key, found in cells.items()},
  }


def mqar_tables(results: list[Result]) -> dict[str, Entries]:
  """Those of `recall_tables`; and of each mixture, by number of pairs."""
  drawn = recall_tables(results)
  for (row, column), found in by_cell(results).items():
    if column.isdigit():
      continue
    title = f'Trained on {column} pairs at once: right answers, %'
    for number in found[0]['scores']['answers']:
      entry = _mean([r['scores']['answers'][number] for r in found])
      drawn.setdefault(title, {})[row, f'{number} pairs'] = entry
  return drawn


def needle_tables(results: list[Result]) -> dict[str, Entries]:
  """Scores at each length, over all depths; tables for each task.

  Part credit and RULER's score are of the results that have them.
  """
  drawn, cells = {}, by_cell(results)
  for column in dict.fromkeys(column for _, column in cells):
    for kind, title in (
        ('answers', 'tokens of the answer that are right'),
        ('exact', 'answers that are right as a whole'),
        ('parts', 'codes that are right as a whole (part credit)'),
        ('generated', 'codes that are in what the model writes (RULER)'),
    ):
      entries = {}
      for (row, c), found in cells.items():
        found = [r for r in found if kind in r['scores']]
        if c != column or not found:
          continue
        shares = [r['scores'][kind] for r in found]
        entries[row, 'seeds'] = str(len(found))
        for length in dict.fromkeys(name.split()[0] for name in shares[0]):
          entries[row, f'{int(length):,}'] = _mean([
              statistics.fmean(
                  share
                  for name, share in seed.items()
                  if name.split()[0] == length
              )
              for seed in shares
          ])
      if entries:
        title = f'{column}, by length of the text in tokens: {title}, %'
        drawn[title] = entries
  return drawn


def mqar_figures(results: list[Result]) -> dict[str, str]:
  """Right answers by number of pairs, and by size of the recurrent state.

  The second is of the numbers of pairs that all its rows have, without mixtures
  and without architectures whose state is a window.
  """

  def mean(found, test='test'):
    return 100 * statistics.fmean(
        r['scores']['answers'][test] for r in found
    )

  def chart(title, series, x):
    lines = [
        charts.Line(name, sorted(points), marks=True, colour=i)
        for i, (name, points) in enumerate(series.items())
    ]
    y = charts.Axis('right answers, %', (0, 100))
    return charts.lines(title, lines, x=x, y=y)

  by_pairs, sizes = {}, {}
  for (row, pairs), found in by_cell(results).items():
    if not pairs.isdigit():  # a mixture
      by_pairs[f'{row}, trained on {pairs}'] = [
          (int(n), mean(found, n)) for n in found[0]['scores']['answers']
      ]
      continue
    by_pairs.setdefault(row, []).append((int(pairs), mean(found)))
    architecture = found[0]['settings']['model']['architecture']
    if not ARCHITECTURES[architecture].window:
      kind = row.rpartition(' ')[0]  # less the width
      size = kind, found[0]['scores']['state_bytes']
      sizes.setdefault(size, {})[pairs] = mean(found)
  every = set.intersection(*map(set, sizes.values())) if sizes else set()
  by_state = {}
  for (kind, size), found in sizes.items() if every else ():
    share = statistics.fmean(found[pairs] for pairs in every)
    by_state.setdefault(kind, []).append((math.log2(size), share))
  drawn = {}
  if by_pairs:
    numbers = sorted({x for points in by_pairs.values() for x, _ in points})
    drawn['pairs'] = chart(
        'MQAR by number of pairs', by_pairs,
        charts.Axis('key-value pairs', ticks=[(x, str(x)) for x in numbers]),
    )
  if by_state:
    logarithms = [math.log2(size) for _, size in sizes]
    first, last = math.ceil(min(logarithms)), math.floor(max(logarithms))
    pairs = ', '.join(sorted(every, key=int))
    ticks = [(x, f'{2**x:,}') for x in range(first, last + 1)]
    drawn['state'] = chart(
        f'MQAR by size of the state, mean over {pairs} pairs', by_state,
        charts.Axis('bytes of state of a sequence', ticks=ticks or None),
    )
  return drawn


def needle_figures(results: list[Result]) -> dict[str, str]:
  """A heat map of right answers by length and depth, for each row and task."""
  drawn = {}
  for (row, column), found in by_cell(results).items():
    answers = [r['scores']['answers'] for r in found]
    names = list(answers[0])
    lengths, depths = (
        list(dict.fromkeys(name.split()[i] for name in names)) for i in (0, 1)
    )
    values = [
        [
            statistics.fmean(seed[f'{length} {depth}'] for seed in answers)
            for length in lengths
        ]
        for depth in depths
    ]
    drawn[slug(f'{column} {row}')] = charts.heat_map(
        f'{row}, {column}: right answers, %', values,
        x_names=[f'{int(x):,}' for x in lengths], x_label='tokens of the text',
        y_names=depths, y_label='depth',
    )
  return drawn


def _wrong(scores: Mapping[str, Any]) -> float:
  return 1 - statistics.fmean(scores['answers'].values())


_render = functools.partial(tables.render, recall_tables)
MAD = Task(
    run_mad, _render, counts=SPLITS, columns=tuple(mad.TASKS), loss=_wrong,
    options=sorted(set().union(*(b.options for b in mad.TASKS.values()))),
)
MQAR = Task(
    run_mqar, functools.partial(tables.render, mqar_tables), mqar_figures,
    counts=SPLITS, lengths=('length', 'vocab'), columns=('#',),
    options=('fill',), loss=_wrong,
)
NEEDLES = Task(
    run_needles, functools.partial(tables.render, needle_tables),
    needle_figures, counts=SPLITS, lengths=('train', 'test', 'depths'),
    columns=tuple(needles.TASKS), loss=_wrong,
)
