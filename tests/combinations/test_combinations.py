"""Every option turned on, with every other that it can stand beside.

Two families of runs, each two training steps, a checkpoint, a resume from it
and an evaluation, by the command line: rows that hold all pairs of values of
all switches and enumerations of the configuration, and each architecture x
regime x memory x optimizer. A day takes a seeded sample, HOPE_SAMPLE another;
`tests/run.sh --all` takes all.
"""

import datetime
import functools
import itertools
import json
import os
import pathlib
import random

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from hope_jax import main as main_lib
from hope_jax.config import (
  Config,
  ConfigError,
  ModelConfig,
  TitansConfig,
  from_dict,
)
from hope_jax.config.architectures import ARCHITECTURES, reads, require_read
from hope_jax.optim.registry import OPTIMIZERS
from hope_jax.train import setup
from tests.combinations import pairs

# Runs of each family in a day's sample.
DAILY = 2
# Tests that all rows of a family are dealt out to.
SHARES = 16
NOTHING = pathlib.Path(__file__).with_name('nothing.py')

# The smallest sizes. Those that not every architecture reads are given where
# one does.
SIZES = {
    'model.dim': 16,
    'model.layers': 2,
    'model.heads': 2,
    'model.attention_window': 8,
    'model.titans.chunk': 4,
    'model.titans.projection_chunk': 4,
    'model.titans.expansion': 2,
    'data.sequence_length': 16,
    'data.batch_size': 2,
    'data.align': 4,
    'data.holdout': 0.3,
    'optimizer.warmup_steps': 0,
    'train.steps': 2,
    'train.log_every': 1,
    'train.eval_every': 2,
    'train.eval_batches': 1,
    'train.checkpoint_every': 1,
}


def _not_read(row: pairs.Row) -> bool:
  """Whether the row's architecture ignores or fixes another of its fields."""
  name = row.get('model.architecture', 'hope')
  own = [f.removeprefix('model.') for f in row if f.startswith('model.')]
  fixed = ARCHITECTURES[name].fixed
  return any(
      not reads(name, f) or fixed.get(f, row[f'model.{f}']) != row[f'model.{f}']
      for f in own
  )


def settled(row: pairs.Row) -> ModelConfig:
  """The row's architecture, as it stands without the row's other fields."""
  objective = row.get('model.titans.objective', 'delta')
  return ModelConfig(
      row.get('model.architecture', 'hope'),
      titans=TitansConfig(objective=objective),
  )


# Why two settings may not stand together: all the reasons there are.
REFUSED = {
    'the architecture does not read it, or fixes it': _not_read,
    'only fast weights have it': lambda row: (
        row.get('model.continuum.regime') == 'outer'
        and (
            row.get('model.continuum.variant') == 'nested'
            or row.get('model.continuum.outer_gradient') == 'exact'
            or row.get('model.continuum.accumulate') == 'sum'
        )
    ),
    'whole numbers are of a matrix, without a step that makes fractions': (
        lambda row: row.get('model.titans.arithmetic') == 'integer'
        and (
            row.get('model.titans.memory', 'mlp') == 'mlp'
            or row.get('model.titans.momentum', False)
            or settled(row).titans.objective == 'l2'
        )
    ),
    'the objective l2 erases twice': lambda row: (
        row.get('model.titans.eigenvalues') == 'signed'
        and settled(row).titans.objective == 'l2'
    ),
}


def fields() -> dict[str, tuple]:
  """Field -> values, of all enumerations and switches that run on a CPU."""
  found = dict(pairs.switches(Config))
  # Kernels of other devices are refused, see below.
  for field in ('titans.implementation', 'attention_implementation'):
    found[f'model.{field}'] = ('auto', 'xla')
  found['model.architecture'] = tuple(ARCHITECTURES)
  found['optimizer.name'] = tuple(OPTIMIZERS)
  return found


def settings(row: pairs.Row) -> pairs.Row:
  """A row with the sizes that its architecture reads."""
  name = row.get('model.architecture', 'hope')
  sizes = {
      field: value
      for field, value in SIZES.items()
      if not field.startswith('model.')
      or reads(name, field.removeprefix('model.'))
  }
  if ARCHITECTURES[name].levels:
    # In training steps, or in tokens.
    in_context = row.get('model.continuum.regime') == 'in_context'
    sizes['model.continuum.periods'] = (4, 8) if in_context else (1, 2)
    if in_context:
      sizes['model.continuum.learning_rates'] = (1e-2, 1e-2)
  if row.get('data.source') != 'stdlib':
    sizes['data.path'] = 'somewhere'
  return sizes | row


def refusal(row: pairs.Row) -> str:
  """What `hope_jax.load` would say against a row; '' where it accepts it."""
  values = {}
  for field, value in settings(row).items():
    *groups, name = field.split('.')
    group = functools.reduce(lambda g, n: g.setdefault(n, {}), groups, values)
    group[name] = value
  try:
    config = from_dict(values)
    require_read(config.model, values['model'])
    if 'optimizer.name' in row:
      setup.make_optimizer(config)
  except ConfigError as error:
    return str(error)
  return ''


@functools.cache
def covering() -> tuple[list[pairs.Row], set[pairs.Pair]]:
  """All rows, and the pairs that no row may hold."""
  names = [{'model.architecture': name} for name in ARCHITECTURES]
  in_context = {'model.continuum.regime': 'in_context'}
  return pairs.cover(
      fields(),
      lambda row: not refusal(row),
      [*names, in_context, *(name | in_context for name in names)],
  )


def product() -> list[pairs.Row]:
  """Each architecture x regime x memory x optimizer that there is."""
  every = fields()
  names = (
      'model.architecture', 'model.continuum.regime', 'model.titans.memory',
      'optimizer.name',
  )
  rows = []
  for values in itertools.product(*(every[name] for name in names)):
    row = dict(zip(names, values))
    kind = row['model.architecture']
    row = {
        field: value
        for field, value in row.items()
        if not field.startswith('model.')
        or reads(kind, field.removeprefix('model.'))
    }
    if row not in rows and not refusal(row):
      rows.append(row)
  return rows


def of_today(rows: list[pairs.Row], share: int) -> pairs.Row:
  """One of a day's rows; the same rows on the same day."""
  day = os.environ.get('HOPE_SAMPLE', datetime.date.today().isoformat())
  return random.Random(day).sample(rows, DAILY)[share]


@pytest.fixture(scope='module', autouse=True)
def shared_compilations(tmp_path_factory):
  """A run, its resumption and its evaluation compile the same programs."""
  options = {
      'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
      'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for values in (options, before):
    for name, value in values.items():
      jax.config.update(name, value)
    # JAX decides at a first compilation whether there is a cache.
    compilation_cache.reset_cache()
    if values is options:
      yield


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """data.source -> data.path of the same thirty texts."""
  array_record = pytest.importorskip(
      'array_record.python.array_record_module',
      reason='array_record is not installed',
  )
  tfds = pytest.importorskip(
      'tensorflow_datasets', reason='tensorflow-datasets is not installed'
  )
  folder = tmp_path_factory.mktemp('texts')
  texts = [f'text number {i} of a corpus. ' * 8 for i in range(30)]
  for i, text in enumerate(texts):
    (folder / f'{i}.txt').write_text(text)
  writer = array_record.ArrayRecordWriter(
      str(folder / 'all.array_record'), 'group_size:1'
  )
  for text in texts:
    writer.write(text.encode())
  writer.close()

  class Texts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    # TFDS would look for the folder of a module that only pytest knows.
    code_path = None
    pkg_dir_path = folder

    def _info(self):
      features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from ((i, {'text': text}) for i, text in enumerate(texts))

  builder = Texts(data_dir=folder / 'tfds', file_format='array_record')
  builder.download_and_prepare()
  return {
      'stdlib': '',
      'files': f'{folder}/*.txt',
      'array_record': f'{folder}/*.array_record',
      'tfds': str(builder.data_dir),
  }


def records(workdir, step):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  timed = ('seconds', 'tokens_per_second')
  return {
      r['split']: {k: v for k, v in r.items() if k not in timed}
      for r in found
      if r['step'] == step
  }


def arguments(given: pairs.Row) -> list[str]:
  return [f'--config.{f}={value}' for f, value in given.items() if value != '']


def run_whole(row: pairs.Row, paths: dict, workdir, capsys) -> None:
  """Trains, resumes and evaluates a row by the command line."""
  source = row.get('data.source', 'files')
  given = settings({'data.source': source} | row) | {'data.path': paths[source]}
  train = [
      'train', f'--config={NOTHING}', f'--workdir={workdir}', *arguments(given)
  ]
  assert main_lib.main(train) == 0, capsys.readouterr().err
  made = records(workdir, 2)
  assert np.isfinite(made['train']['loss'])
  assert made['train']['grad_norm'] < 100, made
  assert main_lib.main([*train, '--checkpoint_step=1']) == 0
  assert records(workdir, 2) == made  # bit for bit
  capsys.readouterr()
  assert main_lib.main(['eval', f'--workdir={workdir}']) == 0
  evaluated = json.loads(capsys.readouterr().out)
  assert evaluated['loss'] == pytest.approx(made['heldout']['loss'], rel=1e-5)


@pytest.mark.parametrize('share', range(DAILY))
def test_pairs_of_today(share, paths, tmp_path, capsys):
  """If it fails, two options that are offered together do not work together."""
  run_whole(of_today(covering()[0], share), paths, tmp_path / 'run', capsys)


@pytest.mark.parametrize('share', range(DAILY))
def test_product_of_today(share, paths, tmp_path, capsys):
  """If it fails, an architecture cannot be trained by an optimizer."""
  run_whole(of_today(product(), share), paths, tmp_path / 'run', capsys)


@pytest.mark.slow  # Trains and evaluates every row; of_today has a sample.
@pytest.mark.parametrize('share', range(SHARES))
@pytest.mark.parametrize('family', ['pairs', 'product'])
def test_all(family, share, paths, tmp_path, capsys):
  """As the samples of a day, for all rows."""
  rows = covering()[0] if family == 'pairs' else product()
  failed = {}
  for i, row in enumerate(rows[share::SHARES]):
    try:
      run_whole(row, paths, tmp_path / str(i), capsys)
    except Exception as error:  # One row must not hide the others.
      failed[str(row)] = repr(error)[:500]
  assert not failed


@pytest.mark.parametrize('command', ['train', 'eval'])
def test_a_kernel_of_another_device(command, paths, tmp_path, capsys):
  """If it fails, what cannot run here is a traceback, or runs as another."""
  row = {'data.source': 'files', 'model.architecture': 'deltanet'}
  given = settings(row) | {'data.path': paths['files']}
  if command == 'eval':
    run_whole(row, paths, tmp_path / 'run', capsys)
  args = [f'--workdir={tmp_path / "run"}', *arguments(
      {'model.titans.implementation': 'pallas_tpu'}
  )]
  if command == 'train':
    args += [f'--config={NOTHING}', *arguments(given)]
  assert main_lib.main([command, *args]) == 2
  (line,) = capsys.readouterr().err.splitlines()[-1:]
  assert 'pallas_tpu' in line


@pytest.mark.parametrize('architecture', ['hope', 'deltanet'])
def test_an_implementation_that_is_not_there(
    architecture, paths, tmp_path, capsys
):
  """If it fails, a name with a typo is a traceback, or runs as another."""
  given = settings({'model.architecture': architecture}) | {
      'model.architecture': architecture, 'model.titans.implementation': 'slow',
      'data.source': 'files', 'data.path': paths['files'],
  }
  args = [f'--workdir={tmp_path}', f'--config={NOTHING}', *arguments(given)]
  assert main_lib.main(['train', *args]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "('auto', 'reference', 'xla', 'pallas_tpu'); got 'slow'" in line


def test_what_is_refused_is_known():
  """If it fails, the configuration refuses what could run, or says it badly."""
  unexplained = []
  for pair in covering()[1]:
    row = dict(pair)
    said = refusal(row)
    assert '\n' not in said and len(said) < 300, said
    if not any(explains(row) for explains in REFUSED.values()):
      unexplained.append((pair, said))
  assert not unexplained
