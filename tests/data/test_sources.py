"""Sources: what is read, what is held out, what is said when nothing is there.
"""

import hashlib
import os
import sysconfig

import numpy as np
import pytest

from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import sources


def _all(source):
  return [source[i] for i in range(len(source))]


def _write(folder, files):
  for name, text in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


def test_stdlib_is_the_library_alone():
  """A failure means other people's code, tests or nothing in the corpus."""
  source = sources.open_source(DataConfig())
  names = [source.name(i) for i in range(len(source))]
  assert len(names) > 300
  assert names == sorted(names)
  assert {'argparse.py', 'json/decoder.py', 'unittest/case.py'} <= set(names)
  assert all(name.endswith('.py') for name in names)
  parts = {part for name in names for part in name.split('/')}
  assert not parts & {'site-packages', 'test', 'tests', 'idle_test'}
  index = names.index('json/decoder.py')
  path = os.path.join(sysconfig.get_path('stdlib'), 'json', 'decoder.py')
  with open(path, 'rb') as file:
    assert source[index] == ('json/decoder.py', file.read())


def test_stdlib_without_sources(tmp_path, monkeypatch):
  """A failure means a traceback on a Python without its library's source."""
  monkeypatch.setattr(sysconfig, 'get_path', lambda _: str(tmp_path))
  (tmp_path / 'empty.py').touch()
  with pytest.raises(ConfigError, match='data.source'):
    sources.open_source(DataConfig())


def test_files_by_glob(tmp_path):
  """A failure means that a glob misses files, or names depend on the machine.
  """
  _write(tmp_path, {
      'a.txt': b'first', 'deep/er/b.txt': b'\xff\x00', 'c.md': b'no',
      'deep/empty.txt': b'',
  })
  source = sources.open_source(
      DataConfig(source='files', path=str(tmp_path / '**' / '*.txt'))
  )
  assert _all(source) == [('a.txt', b'first'), ('deep/er/b.txt', b'\xff\x00')]
  one = sources.open_source(
      DataConfig(source='files', path=str(tmp_path / 'a.txt'))
  )
  assert _all(one) == [('a.txt', b'first')]


def test_file_with_wildcards_in_its_name(tmp_path):
  """A failure means that `data[1].txt` is not found, or taken for a glob."""
  _write(tmp_path, {'data[1].txt': b'text', 'data1.txt': b'other'})
  source = sources.open_source(
      DataConfig(source='files', path=str(tmp_path / 'data[1].txt'))
  )
  assert _all(source) == [('data[1].txt', b'text')]


def test_nothing_to_read_says_what_would_do(tmp_path):
  """A failure means a traceback, or silence, for a wrong data path."""
  _write(tmp_path, {'empty.txt': b'', 'deep/empty.txt': b''})
  cases = {
      str(tmp_path / 'none.txt'): 'no file matches',
      str(tmp_path / '*.none'): 'no file matches',
      str(tmp_path / 'empty.txt'): 'empty',
      str(tmp_path / '**' / '*.txt'): 'empty',
      str(tmp_path): 'folder',
  }
  for path, what in cases.items():
    with pytest.raises(ConfigError, match=what) as caught:
      sources.open_source(DataConfig(source='files', path=path))
    message = str(caught.value)
    assert '\n' not in message and repr(path) in message and '; give' in message


def test_a_file_that_vanishes_is_one_line(tmp_path):
  """A failure means a traceback in the middle of training."""
  _write(tmp_path, {'a.txt': b'first'})
  path = str(tmp_path / 'a.txt')
  source = sources.open_source(DataConfig(source='files', path=path))
  os.remove(path)
  with pytest.raises(ConfigError, match='cannot read') as caught:
    _ = source[0]
  assert '\n' not in str(caught.value)


class _Named:
  """Documents of the given names; the text of each is its name."""

  def __init__(self, names):
    self._names = names

  def __len__(self):
    return len(self._names)

  def __getitem__(self, index):
    return self._names[index], self._names[index].encode()

  def name(self, index):
    return self._names[index]


@pytest.mark.parametrize('holdout', [0.05, 0.5])
def test_split_by_hash(holdout):
  """A failure means that held-out documents change, or are trained on."""
  names = [f'{i}/x.py' for i in range(400)]
  train, heldout = sources.split(_Named(names), holdout)
  left, right = ([n for n, _ in _all(s)] for s in (train, heldout))
  assert sorted(left + right) == sorted(names)
  # The hash, spelt out: the first bits of SHA-256 as a fraction.
  for name in names:
    first = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
    assert (name in right) == (first < holdout * 16**12)
  assert abs(len(right) / len(names) - holdout) < 0.05
  # Other documents going away moves none across.
  fewer, _ = sources.split(_Named(names[::2]), holdout)
  assert {n for n, _ in _all(fewer)} == set(left) & set(names[::2])


@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('holdout', [1e-9, 1 - 1e-9])
def test_split_leaves_no_side_empty(count, holdout):
  """A failure means that a small corpus has nothing to train or measure on."""
  names = [str(i) for i in range(count)]
  train, heldout = sources.split(_Named(names), holdout)
  assert len(train) and len(heldout)
  assert sorted(n for n, _ in _all(train) + _all(heldout)) == names


@pytest.mark.parametrize('size', [2, 19, 1000])
def test_split_of_a_single_document(size):
  """A failure means that text of a lone file is lost, or is on both sides."""
  text = bytes(np.random.default_rng(0).integers(0, 256, size).tolist())
  name = 'x' * size

  class Single(_Named):

    def __getitem__(self, index):
      return self.name(index), text

  train, heldout = sources.split(Single([name]), 0.05)
  ((_, left),), ((_, right),) = _all(train), _all(heldout)
  assert left + right == text
  assert len(right) == max(1, round(0.05 * size))
  with pytest.raises(IndexError):
    _ = train[1]


def test_split_of_nothing():
  """A failure means a traceback for a source without documents."""
  with pytest.raises(ConfigError, match='no documents'):
    sources.split(_Named([]), 0.1)


def test_array_record(tmp_path):
  """A failure means that ArrayRecord files are misread."""
  module = pytest.importorskip(
      'array_record.python.array_record_module',
      reason='array_record is not installed',
  )
  texts = [f'document {i} é'.encode() for i in range(7)] + [b'\xff']
  for shard, part in enumerate((texts[:5], texts[5:])):
    path = str(tmp_path / f'data-{shard}.array_record')
    writer = module.ArrayRecordWriter(path, 'group_size:1')
    for text in part:
      writer.write(text)
    writer.close()
  source = sources.open_source(DataConfig(
      source='array_record', path=str(tmp_path / '*.array_record')
  ))
  assert _all(source) == [(f'record:{i}', t) for i, t in enumerate(texts)]
  not_one = tmp_path / 'text.array_record'
  not_one.write_bytes(b'nothing of the kind')
  with pytest.raises(ConfigError, match='not ArrayRecord') as caught:
    sources.open_source(DataConfig(source='array_record', path=str(not_one)))
  assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
  """A real TFDS dataset of five documents, prepared without TensorFlow."""
  tfds = pytest.importorskip(
      'tensorflow_datasets', reason='tensorflow-datasets is not installed'
  )

  class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    # TFDS would look for the folder of a module that only pytest knows.
    code_path = None
    pkg_dir_path = tmp_path_factory.mktemp('tfds_package')

    def _info(self):
      features = tfds.features.FeaturesDict({
          'text': tfds.features.Text(),
          'label': tfds.features.Scalar(np.int64),
      })
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(range(5)),
              'test': self._generate_examples(range(5, 7))}

    def _generate_examples(self, numbers):
      for i in numbers:
        yield i, {'text': f'é {i}', 'label': i}

  builder = Tiny(
      data_dir=tmp_path_factory.mktemp('tfds'), file_format='array_record'
  )
  builder.download_and_prepare()
  return str(builder.data_dir)


def test_tfds(tfds_folder):
  """A failure means that prepared TFDS datasets cannot be trained on."""
  source = sources.open_source(DataConfig(source='tfds', path=tfds_folder))
  texts = sorted(text for _, text in _all(source))
  assert texts == [f'é {i}'.encode() for i in range(5)]
  assert source.name(3) == 'tiny/1.0.0/train:3'
  test = sources.open_source(
      DataConfig(source='tfds', path=f'{tfds_folder}@test')
  )
  assert sorted(t for _, t in _all(test)) == ['é 5'.encode(), 'é 6'.encode()]


def test_tfds_errors(tfds_folder, tmp_path):
  """A failure means a TFDS traceback of pages for a mistyped name."""
  cases = [
      ({'path': f'{tfds_folder}@nosplit'}, 'nosplit'),
      ({'path': 'no_such_dataset'}, 'no_such_dataset'),
      ({'path': str(tmp_path)}, 'cannot open'),
      ({'path': tfds_folder, 'text_field': 'texd'}, 'label, text'),
      ({'path': tfds_folder, 'text_field': 'label'}, 'a field of text'),
  ]
  for fields, what in cases:
    with pytest.raises(ConfigError, match=what) as caught:
      sources.open_source(DataConfig(source='tfds', **fields))
    assert '\n' not in str(caught.value)
