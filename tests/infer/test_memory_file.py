"""The file of a memory: what is saved is what comes back, else one line."""

import dataclasses
import json
import os
import pickle
import resource
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ConfigError
from hope_jax.data.tokenizer import ByteTokenizer
from hope_jax.infer import memory_file
from hope_jax.infer import session as session_lib
from tests import standin

MODEL = standin.BYTES
TEXT = 'the memory of what it read'


@pytest.fixture
def path(session, tmp_path):
  """The memory of a text, in a file."""
  session.feed(TEXT)
  session.generate(3)
  session.save(str(tmp_path / 'memory.npz'))
  return str(tmp_path / 'memory.npz')


def refused(session, path):
  """Returns the line a file is answered with; nothing is taken of it."""
  session.reset()
  session.feed('something')
  before = session.loss('next'), session._position, session._seed
  with pytest.raises(ConfigError) as error:
    session.load(path)
  assert (session.loss('next'), session._position, session._seed) == before
  line = str(error.value)
  assert line.isprintable() and repr(path) in line
  return line


def change(path, edit):
  """Rewrites a file after edit(about, arrays)."""
  with np.load(path) as file:
    arrays = dict(file)
  about = json.loads(arrays.pop('about').tobytes())
  edit(about, arrays)
  about = np.frombuffer(json.dumps(about).encode(), np.uint8)
  np.savez(path, about=about, **arrays)


def test_save_and_load(session, params, path, tmp_path):
  """If it fails, a memory does not survive the process."""
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  other.load(path)
  assert other.loss('next') == session.loss('next')
  assert other.generate(9) == session.generate(9)
  # A fresh memory can be saved too, and the file is replaced as a whole.
  session.reset()
  session.save(path)
  other.load(path)
  assert other.loss('next') == session.loss('next')
  assert os.listdir(tmp_path) == ['memory.npz']


def test_the_home_folder(session, params, tmp_path, monkeypatch):
  """If it fails, '~/memory' makes a folder './~', or is not found."""
  monkeypatch.setenv('HOME', str(tmp_path))
  session.feed(TEXT)
  session.save('~/memory')
  assert os.listdir(tmp_path) == ['memory']
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  other.load('~/memory')
  assert other.loss('next') == session.loss('next')


def test_dtypes_that_numpy_has_no_name_for(tmp_path):
  """If it fails, a bfloat16 model cannot be saved, or comes back as bits."""
  state = {'a': jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 3,
           'b': jnp.zeros((), jnp.int32), 'c': jnp.zeros((0, 3))}
  path, whose = str(tmp_path / 'memory'), memory_file.Owner({}, '', '', None)
  memory = memory_file.Memory(state, 3, 5, 7, b'\xf0\x9f')
  memory_file.write(path, memory, whose)
  found = memory_file.read(path, lambda: state, whose)
  assert found[1:] == memory[1:]
  for name, array in state.items():
    assert found.state[name].dtype == array.dtype
    np.testing.assert_array_equal(found.state[name], array)


def test_what_is_no_memory(session, tmp_path):
  """If it fails, a wrong file is answered with a trace, or half loaded."""
  for name, write in (
      ('text', lambda path: path.write_text('hello')),
      ('empty', lambda path: path.write_bytes(b'')),
      ('folder', lambda path: path.mkdir()),
      ('other', lambda path: np.savez(path.open('wb'), last=3, a=np.ones(2))),
      ('array', lambda path: np.save(path.open('wb'), np.ones(3))),
      ('absent', lambda path: None),
  ):
    write(tmp_path / name)
    assert 'not a saved memory' in refused(session, str(tmp_path / name))


def test_every_byte_is_watched(session, params, path):
  """If it fails, a damaged file is taken for a memory: other numbers.

  A file is cut at, and one byte is changed in, a hundred places. What stays
  right is exactly right.
  """
  expected = session.loss('next'), session.generate(4)
  whole = open(path, 'rb').read()
  rng = np.random.default_rng(0)
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  wrong = 0
  for i, at in enumerate(rng.integers(0, len(whole), 100)):
    flipped = bytes([whole[at] ^ int(rng.integers(1, 256))])
    damaged = whole[:at] + (flipped + whole[at + 1 :] if i % 2 else b'')
    with open(path, 'wb') as file:
      file.write(damaged)
    try:
      other.load(path)
    except ConfigError as error:
      wrong += 1
      assert '\n' not in str(error)
    else:
      assert (other.loss('next'), other.generate(4)) == expected
  assert wrong > 80


STATE = '[0]'  # The stand-in's hidden vector; [1] is a segment, int32.


def _array(about, name, array):
  about['arrays'][name] = [str(array.dtype), list(array.shape)]
  return array


@pytest.mark.parametrize(('edit', 'message'), [
    (lambda f, a: a.update({STATE: a[STATE] * np.nan}), 'nan'),
    (lambda f, a: a.update({STATE: a[STATE] + np.inf}), 'inf'),
    (lambda f, a: a.update({STATE: a[STATE].astype(np.float64)}), 'float64'),
    (lambda f, a: a.update(
        {STATE: _array(f, STATE, a[STATE].astype(np.float16))}), 'float16'),
    (lambda f, a: a.update({STATE: _array(f, STATE, a[STATE].T)}), 'another'),
    (lambda f, a: a.update({STATE: a[STATE].ravel()}), 'holds'),
    (lambda f, a: (a.pop(STATE), f['arrays'].pop(STATE)), 'nothing'),
    (lambda f, a: a.pop(STATE), 'memory'),
    (lambda f, a: f['arrays'].update({'[2]': ['int32', [1]]}), '[2]'),
    (lambda f, a: f.update(arrays=3), 'arrays'),
    (lambda f, a: f.update(last=256), 'last'),
    (lambda f, a: f.update(last=-1), 'last'),
    (lambda f, a: f.update(last=True), 'last'),
    (lambda f, a: f.update(last=1.5), 'last'),
    (lambda f, a: f.update(position=-1), 'position'),
    (lambda f, a: f.update(position=2**31), 'position'),
    (lambda f, a: f.update(position=0), 'fresh'),
    (lambda f, a: f.update(seed=2**32), 'seed'),
    (lambda f, a: f.update(seed='x'), 'seed'),
    (lambda f, a: f.update(unfinished=[256]), 'unfinished'),
    (lambda f, a: f.update(unfinished=[1] * 9), 'unfinished'),
    (lambda f, a: f.update(unfinished='ab'), 'unfinished'),
    (lambda f, a: f.update(format=1), 'format'),
    (lambda f, a: f.update(params='0' * 64), 'other parameters'),
    (lambda f, a: f.update(tokenizer='x'), 'other tokenizer'),
    (lambda f, a: f['config'].update(rope_base=1.0), 'rope_base'),
    (lambda f, a: f['config']['titans'].update(chunk=4), 'titans.chunk'),
    (lambda f, a: f['config'].update(config=1), 'absent'),
    (lambda f, a: f['config'].update({'\x1b[2J\n': '\x1b'}), 'x1b[2J'),
    (lambda f, a: f['arrays'].update({'\x1b[2J\n': 1}), 'x1b[2J'),
    (lambda f, a: [f.pop(k) for k in list(f) if k != 'format'], 'config'),
])
def test_what_a_file_says_is_checked(session, path, edit, message):
  """If it fails, a file of other numbers is taken as the session's own."""
  change(path, edit)
  assert message in refused(session, path)


@pytest.mark.parametrize(('name', 'value'), [
    ("['place'].position", -1), ("['place'].position", 10**6),
    ("['layers']['document']", -2), ("['layers']['titans'].phase", -3),
])
def test_counts_have_ranges(name, value):
  """If it fails, a position below 0 is read as one of another document."""
  array = np.array([0, value], np.int32)
  with pytest.raises(ConfigError, match='damaged'):
    memory_file._require_range('file', name, array, most=1000)
  memory_file._require_range('file', name, array[:1], most=1000)


def test_another_s_memory(session, params, path):
  """If it fails, numbers of one model go on in another."""
  others = {
      'other parameters': (MODEL, jax.tree.map(lambda p: p + 1e-6, params)),
      'rope_base': (
          MODEL.clone(
              config=dataclasses.replace(MODEL.config, rope_base=500.0)
          ),
          params,
      ),
  }
  for message, (model, its) in others.items():
    other = session_lib.Session(model, its, ByteTokenizer())
    assert message in refused(other, path)

  class Another(ByteTokenizer):
    fingerprint = 'another'

  other = session_lib.Session(MODEL, params, Another())
  assert 'other tokenizer' in refused(other, path)


class Marker:
  """Unpickling it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, 'w')


def test_nothing_is_unpickled_or_written(session, path, tmp_path):
  """If it fails, a memory from elsewhere can run what it likes."""
  marker = str(tmp_path / 'marker')
  array = np.empty((1,), object)
  array[0] = Marker(marker)
  change(path, lambda about, arrays: arrays.update({STATE: array}))
  refused(session, path)
  about = np.array([Marker(marker)], object)
  np.savez(path, about=about)
  refused(session, path)
  with open(path, 'wb') as file:
    pickle.dump(Marker(marker), file)
  refused(session, path)
  # A name that leads out of the folder is a name like any other.
  session.save(path)
  with zipfile.ZipFile(path, 'a') as file:
    file.writestr('../marker', 'outside')
  session.load(path)
  assert not os.path.exists(marker)
  assert not os.path.exists(tmp_path.parent / 'marker')


def test_a_header_costs_no_memory(session, path):
  """If it fails, a small file asks for as much memory as it likes."""
  size = 2**40
  header = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.uint8))
  for name in ('about', STATE):
    with zipfile.ZipFile(path) as file:
      entries = {n: file.read(n) for n in file.namelist()}
    with zipfile.ZipFile(path, 'w') as file:
      for entry, data in entries.items():
        if entry != f'{name}.npy':
          file.writestr(entry, data)
      with file.open(f'{name}.npy', 'w') as entry:
        np.lib.format.write_array_header_1_0(entry, header | {'shape': (size,)})
    refused(session, path)
    session.save(path)


def test_where_it_cannot_be_written(session, path, tmp_path):
  """If it fails, a full disk is a traceback, or leaves something behind."""
  before = open(path, 'rb').read()
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'memory.npz.new').write_text('a file of the user')
  names = sorted(os.listdir(tmp_path))
  # A device is not replaced by a file.
  places = [str(tmp_path / 'none' / 'memory'), str(tmp_path / 'folder'),
            '/dev/null', 'a\0b', str(tmp_path / ('n' * 300))]
  for place in places:
    with pytest.raises(ConfigError, match='could not be written') as error:
      session.save(place)
    assert '\n' not in str(error.value)
  for place in (*places, '/dev/zero'):  # Which has no end.
    refused(session, place)
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
  try:  # As a full disk has it: the file is begun and does not fit.
    with pytest.raises(ConfigError, match='could not be written'):
      session.save(path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert open(path, 'rb').read() == before
  assert sorted(os.listdir(tmp_path)) == names
