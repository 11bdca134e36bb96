"""Rows that a chunk grid cannot take: refused by name, or NaN with a name."""

import ast
import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from hope_jax import config as config_lib
from hope_jax.config import ConfigError, architectures
from hope_jax.data import pipeline
from hope_jax.evals import text
from hope_jax.models import packing
from hope_jax.models.factory import language_model
from hope_jax.nested import levels
from hope_jax.train import loop, losses
from tests.marks import quick

PACKAGE = pathlib.Path(levels.__file__).parents[1]
LENGTH = 128
CHUNKS = {
    'hope': {'titans.chunk': 32, 'titans.projection_chunk': 32,
             'titans.memory': 'matrix'},
    'ttt_linear': {'ttt.mini_batch': 32},
    'titans_lmm': {'titans.chunk': 32},
}


def _config(architecture='hope', **fields):
  model = dict(architecture=architecture, dim=8, heads=2, layers=1)
  values = {'model': model, 'data': dict(sequence_length=LENGTH, batch_size=2),
            'train': dict(steps=2, log_every=1),
            'optimizer': dict(warmup_steps=1)}
  for name, value in fields.items():
    *groups, field = name.split('.')
    group = values
    for part in groups:
      group = group.setdefault(part, {})
    group[field] = value
  return config_lib.from_dict(values)


def _chunked(architecture, **fields):
  chunks = {f'model.{k}': v for k, v in CHUNKS[architecture].items()}
  return _config(architecture, **chunks, **fields)


def _batch(*rows):
  """A batch of documents of the given lengths, without gaps; then padding."""
  ids = np.zeros((len(rows), LENGTH), np.int32)
  for row, sizes in enumerate(rows):
    found = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    ids[row, : len(found)] = found
  mask = (ids > 0).astype(np.float32)
  return {'tokens': ids % 7, 'targets': ids % 5, 'segment_ids': ids,
          'mask': mask, 'target_bytes': mask.astype(np.int32)}


# Of 32 tokens a tile, the grid has room for 2 * 4 + 8 documents.
CROWDED = _batch([LENGTH], [3] * 17)
OFF_GRID = _batch([LENGTH], [16, 3, 20])
CASES = [
    ('crowded_rows', _chunked('hope'), CROWDED),
    ('crowded_rows', _chunked('ttt_linear'), CROWDED),
    ('crowded_rows', _chunked('titans_lmm'), CROWDED),
    ('unaligned_rows',
     _config(**{'model.titans.grid': 'aligned',
                'model.titans.memory': 'matrix'}), OFF_GRID),
    ('off_chunk_rows',
     _config('hope_attention', **{'model.continuum.regime': 'in_context',
                                  'model.continuum.periods': (16,)}),
     OFF_GRID),
]
IDS = [f'{config.model.architecture}-{name}' for name, config, _ in CASES]


def _init(config):
  model = language_model(config.model)
  params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))
  return model, params['params']


@pytest.fixture(
    scope='module',
    params=quick(
        [
            pytest.param(case, id=name) for case, name in zip(CASES, IDS)
        ],
        [
            'hope-crowded_rows', 'ttt_linear-crowded_rows',
            'hope_attention-off_chunk_rows',
        ],
    ),
)
def case(request):
  name, config, batch = request.param
  return name, config, batch, *_init(config)


def test_what_does_not_fit_is_refused_by_name(case):
  """A failure means 'loss is nan at step 2', and a user who looks for days."""
  name, config, batch, model, params = case
  calls = [
      lambda: model.apply(
          {'params': params}, batch['tokens'], segment_ids=batch['segment_ids']
      ),
      lambda: text.evaluate(model, params, [batch]),
  ]
  if config is CASES[0][1]:
    calls.append(lambda: loop.train(
        model, iter([batch] * 2), config, progress=False
    ))
  for call in calls:
    with pytest.raises(ConfigError) as caught:
      call()
    message = str(caught.value)
    documents = len(set(batch['segment_ids'][1]) - {0})
    assert message.startswith(f'row 1 of a batch, with {documents} documents')
    assert levels.REASONS[name] in message and '\n' not in message


def test_what_cannot_be_seen_has_a_metric(case):
  """A failure means a NaN of a compiled step without a name.

  The row is NaN and no other, and its metric says why; a batch that fits has
  neither.
  """
  name, _, batch, model, params = case

  @jax.jit
  def step(ids):
    (logits, _), extra = model.apply(
        {'params': params}, batch['tokens'], segment_ids=ids,
        mutable=['diagnostics'],
    )
    return logits, losses.by_name(extra['diagnostics'])

  logits, found = step(batch['segment_ids'])
  assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).any()
  counts = {f'{k}/max': v.max() for k, v in found.items()}
  assert counts[f'{name}/max'] == 1
  assert levels.reason_for_nan(counts) == f'1 rows have {levels.REASONS[name]}'
  logits, found = step(_batch([LENGTH], [16, 48, 64])['segment_ids'])
  assert np.isfinite(logits).all()
  assert not levels.reason_for_nan(
      {f'{k}/max': v.max() for k, v in found.items()}
  )


def test_the_trainer_names_the_reason():
  """A failure means that a metric knows what the error does not say."""
  metrics = {
      'loss': np.nan, 'grad_norm': 1.0, 'update_norm': 1.0, 'param_norm': 1.0,
      'crowded_rows/max': 2.0,
  }
  assert '2 rows have more documents' in loop._fault(metrics)


@pytest.mark.parametrize('architecture', CHUNKS)
def test_many_short_files_are_trained_on(tmp_path, architecture):
  """A failure means that a corpus of short files is NaN by the second step."""
  for i in range(200):
    (tmp_path / f'{i}.txt').write_bytes(b'ab%d\n' % i)
  config = _chunked(architecture, **{
      'data.source': 'files', 'data.path': str(tmp_path / '*.txt'),
      'data.align': 1,
  })
  tile = architectures.chunk_of(config.model)
  assert tile == 32
  crowded = next(pipeline.train_batches(config.data))
  assert crowded['segment_ids'].max() > 16
  batch = next(pipeline.train_batches(config.data, tile=tile))
  assert batch['segment_ids'].max() == 16
  # Nothing of the text is lost for it.
  heldout = pipeline.heldout_batches(config.data, tile=tile)
  size = sum(batch['target_bytes'].sum() for batch in heldout)
  assert size == len(pipeline.heldout_text(config.data))
  if architecture == 'hope':
    model, params = _init(config)
    assert np.isfinite(text.evaluate(model, params, [batch])['loss'])


def test_what_is_refused_is_what_the_grid_cannot_take():
  """A failure means that rows which fit are refused, or others let through.

  The grid of the model says which, for rows that begin a stream and rows that
  go on with a document anywhere in a tile, with padding at their ends.
  """
  config, rng = _chunked('hope').model, np.random.default_rng(0)
  grid = jax.jit(functools.partial(
      levels.token_grid, 1, LENGTH, tile=32, period=32
  ))
  seen = set()
  for trial in range(120):
    sizes = rng.integers(1, [4, 10, 20][trial % 3], 17 + trial % 4)
    batch = _batch(sizes[np.cumsum(sizes) <= LENGTH])
    ids = batch['segment_ids']
    place = packing.Place(*np.array([[trial % 2], [rng.integers(0, 99)]]))
    if trial % 4 > 1:
      place = None
    found, _ = packing.locate(ids, place, 1, LENGTH)
    phase = np.zeros(1, int) if place is None else place.position % 32
    overflow = grid(
        phase=phase.astype(np.int32), starts=found.starts,
        present=found.present,
    ).overflow[0]
    try:
      packing.require_room(config, ids, place)
      refused = False
    except ConfigError:
      refused = True
    assert refused == bool(overflow)
    seen.add((refused, place is None))
  assert len(seen) == 4


def test_every_nan_has_a_reason():
  """A failure means that some code answers NaN and nothing says why.

  In the whole package NaN is written in one function, which is told a reason
  that the table holds; the numbers of a report may be missing.
  """
  found, reasons = [], set()
  for path in sorted(PACKAGE.rglob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    where = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and node.attr in ('nan', 'NaN', 'NAN'):
        found.append(where)
      if isinstance(node, ast.Call) and ast.unparse(node.func) == 'float':
        found += [where] * ('nan' in ast.unparse(node).lower())
      if isinstance(node, ast.Constant) and node.value in levels.REASONS:
        reasons.add(node.value)
  computes = [
      where for where in found
      if where.split('/')[0] not in ('report', 'config', 'main.py')
  ]
  assert computes == ['nested/levels.py']
  assert reasons == set(levels.REASONS)


@pytest.mark.parametrize(
    ('ids', 'held', 'refused'),
    [
        ([1, 1, 0, 1], None, True), ([1, 0, 0, 1], None, True),
        ([2, 1, 0, 1], None, True), ([0, 0, 5, 5], 5, True),
        ([1, 1, 0, 2], None, False), ([0, 0, 1, 1], None, False),
        ([1, 1, 0, 0], 1, False), ([0, 0, 2, 2], 1, False),
        ([0, 0, 0, 0], 1, False), ([2, 0, 1, 0], 1, False),
    ],
)
def test_padding_inside_a_document(ids, held, refused):
  """A failure means that a model reads the padding as a part of the text."""
  config = _config('transformer').model
  place = held and packing.Place(np.array([9, held]), np.array([3, 3]))
  rows = np.array([[9] * 4, ids])
  if not refused:
    packing.require_room(config, rows, place)
    return
  with pytest.raises(ConfigError, match='row 1 .* padding inside a document'):
    packing.require_room(config, rows, place)


def test_models_without_a_grid_take_all_rows():
  """A failure means that a Transformer is refused for Hope's chunks."""
  config = _config('transformer')
  assert architectures.chunk_of(config.model) == 1
  assert architectures.start_of(config.model) == (1, '')
  aligned = dataclasses.replace(
      config.model.titans, grid='aligned', chunk=64, projection_chunk=64
  )
  model = dataclasses.replace(config.model, titans=aligned)
  assert architectures.start_of(model) == (1, '')
