"""Checkpoints: what happens when a disk, a file or a user fails."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import threading
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from hope_jax import sharding
from hope_jax.config import ConfigError, MeshConfig, ModelConfig
from hope_jax.train import checkpoint, failures, metrics, record, setup
from hope_jax.train import state as state_lib
from tests import standin

# What Orbax abandons at an error is reported to the host, here pytest.
pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning'
)


def make_state(step, seed=0):
  mesh = sharding.make_mesh(MeshConfig(data=1))
  # Arrays of less than a kilobyte are stored otherwise than large ones.
  model = standin.Standin(ModelConfig(vocab_size=256))
  state = state_lib.create(model, optax.adam(0.1), 4, seed, mesh)
  return state._replace(step=jnp.int32(step))


def saved(tmp_path, steps=(1, 2), **groups):
  config = standin.make_config(workdir=tmp_path, **groups)
  checkpoint.claim_workdir(config)
  checkpoints = checkpoint.Checkpoints(config)
  for step in steps:
    checkpoints.save(make_state(step, seed=step), {'place': step})
  return config, checkpoints


def one_line(error):
  text = str(error.value)
  assert '\n' not in text
  return text


def values(tree):
  return [
      np.asarray(jax.random.key_data(x)) if jnp.issubdtype(
          x.dtype, jax.dtypes.prng_key) else np.asarray(x)
      for x in jax.tree.leaves(tree)
  ]


def files_of(tmp_path, step):
  folder = tmp_path / 'checkpoints' / str(step)
  return sorted(path for path in folder.rglob('*') if path.is_file())


class Touches:
  """A harmless pickle, which leaves a file where it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, 'w')


def damage(path, harm):
  data = bytearray(path.read_bytes())
  if harm == 'remove':
    path.unlink()
  elif harm == 'pickle':
    path.write_bytes(pickle.dumps(Touches(path.parent / 'touched')))
  elif harm == 'cut':
    path.write_bytes(data[: len(data) // 2])
  else:
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_round_trip(tmp_path):
  """If it fails, a restored run is another run."""
  _, checkpoints = saved(tmp_path)
  for step in (1, 2):
    state, place = checkpoints.restore(make_state(0), step)
    assert place == {'place': step}
    for a, b in zip(values(state), values(make_state(step, seed=step))):
      assert a.tobytes() == b.tobytes()
  params = checkpoints.restore_params(make_state(0).params)
  for a, b in zip(values(params), values(make_state(2, seed=2).params)):
    assert a.tobytes() == b.tobytes()


def test_keeps_the_newest(tmp_path):
  """If it fails, checkpoints fill the disk, or the wrong ones go."""
  _, checkpoints = saved(
      tmp_path, steps=(1, 2, 9, 10), train={'keep_checkpoints': 2}
  )
  assert checkpoints.steps() == [9, 10]


@pytest.mark.parametrize('harm', ['flip', 'cut', 'remove', 'pickle'])
def test_damaged_checkpoint(tmp_path, harm):
  """If it fails, a damaged file trains on with other numbers, or with a trace.

  The largest file holds the numbers themselves, where the storage format does
  not see a flipped bit. The older checkpoint is used only if asked for.
  """
  _, checkpoints = saved(tmp_path)
  victim = max(files_of(tmp_path, 2), key=lambda path: path.stat().st_size)
  damage(victim, harm)
  with pytest.raises(ConfigError) as error:
    checkpoints.restore(make_state(0))
  assert 'checkpoints/2 is damaged' in one_line(error)
  assert '--checkpoint_step=1' in one_line(error)
  state, _ = checkpoints.restore(make_state(0), 1)
  assert int(state.step) == 1
  assert checkpoints.steps() == [1, 2]
  assert not list(tmp_path.rglob('touched'))


@pytest.mark.slow  # Restores once for each file of a checkpoint.
@pytest.mark.parametrize('harm', ['flip', 'cut', 'remove', 'pickle'])
def test_damage_of_any_file(tmp_path, harm):
  """If it fails, some damage is read as other numbers, or ends in a trace.

  Each file in turn: the answer is one line, or the right numbers, as not every
  file is needed.
  """
  _, checkpoints = saved(tmp_path, steps=(1,))
  right = [x.tobytes() for x in values(make_state(1, seed=1))]
  refused = 0
  for path in files_of(tmp_path, 1):
    data = path.read_bytes()
    damage(path, harm)
    try:
      state, place = checkpoints.restore(make_state(0))
      assert [x.tobytes() for x in values(state)] == right
      assert place == {'place': 1}
    except ConfigError as error:
      assert '\n' not in str(error)
      refused += 1
    path.write_bytes(data)
  assert refused > 3
  # Nothing in it is run.
  assert not list(tmp_path.rglob('touched'))


def test_a_record_leads_nowhere(tmp_path):
  """If it fails, a checkpoint from elsewhere reads or writes where it likes."""
  _, checkpoints = saved(tmp_path / 'a' / 'run')
  (tmp_path / 'a' / 'victim').write_text('x')
  path = tmp_path / 'a' / 'run' / 'checkpoints' / '2' / 'about' / 'metadata'
  about = json.loads(path.read_text())
  about['config']['workdir'] = '../victim'
  about['checksums']['record'] = record._digest(about)
  path.write_text(json.dumps(about | {'../victim': '../victim'}))
  before = sorted(tmp_path.rglob('*'))
  state, _ = checkpoints.restore(make_state(0))
  assert int(state.step) == 2
  assert sorted(tmp_path.rglob('*')) == before
  assert (tmp_path / 'a' / 'victim').read_text() == 'x'


def test_no_such_checkpoint(tmp_path):
  """If it fails, a wrong --checkpoint_step is answered with a trace."""
  _, checkpoints = saved(tmp_path)
  with pytest.raises(ConfigError) as error:
    checkpoints.restore(make_state(0), 5)
  assert 'no checkpoint of step 5' in one_line(error)
  assert 'there are: 1, 2' in one_line(error)


def test_set_aside(tmp_path):
  """If it fails, going on from an older checkpoint destroys later ones."""
  _, checkpoints = saved(tmp_path, train={'keep_checkpoints': 9})
  for _ in range(2):
    checkpoints.save(make_state(3), {})
    checkpoints.set_aside_after(1)
    assert checkpoints.steps() == [1]
    checkpoints.save(make_state(2), {})
  assert sorted(os.listdir(tmp_path / 'set_aside')) == ['2', '2_', '3', '3_']


def test_other_config(tmp_path):
  """If it fails, a run is continued with, or overwritten by, another one."""
  config, _ = saved(tmp_path)
  other = dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, dim=16),
      data=dataclasses.replace(config.data, seed=3),
  )
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ConfigError) as error:
    checkpoint.claim_workdir(other)
  assert 'model.dim is 8 there and 16 here' in one_line(error)
  assert 'data.seed is 0 there and 3 here' in one_line(error)
  assert 'train' not in one_line(error)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_what_may_change(tmp_path):
  """If it fails, a run cannot be made longer, or moved to other devices."""
  config, _ = saved(tmp_path)
  train = dataclasses.replace(config.train, steps=99, log_every=5)
  checkpoint.claim_workdir(
      dataclasses.replace(config, train=train, mesh=MeshConfig(fsdp=2))
  )
  assert checkpoint.load_config(str(tmp_path)).train.steps == 99
  seeded = dataclasses.replace(config.train, seed=1)
  with pytest.raises(ConfigError, match='train.seed is 0 there'):
    checkpoint.claim_workdir(dataclasses.replace(config, train=seeded))


def test_workdir_of_a_failed_start(tmp_path):
  """If it fails, a typo in the first attempt makes a folder useless."""
  checkpoint.claim_workdir(standin.make_config(workdir=tmp_path))
  other = standin.make_config(workdir=tmp_path, data={'seed': 5})
  checkpoint.claim_workdir(other)
  assert checkpoint.load_config(str(tmp_path)) == other


def test_no_run_there(tmp_path):
  """If it fails, a wrong --workdir is answered with a trace."""
  with pytest.raises(ConfigError, match='no run in workdir'):
    checkpoint.load_config(str(tmp_path))
  (tmp_path / 'config.json').write_text('{"model"')
  with pytest.raises(ConfigError, match='cannot be read'):
    checkpoint.load_config(str(tmp_path))


def test_checksum_sees_every_byte():
  """If it fails, some damage goes unnoticed. Every bit of an array is tried."""
  exact = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
  (right,) = checkpoint._checksums(exact)
  seen = set()
  for bit in range(exact.nbytes * 8):
    data = bytearray(exact.tobytes())
    data[bit // 8] ^= 1 << bit % 8
    wrong = np.frombuffer(bytes(data), np.float32).reshape(exact.shape)
    (found,) = checkpoint._checksums(wrong)
    assert int(found) != int(right)
    seen.add(int(found))
  assert len(seen) == exact.nbytes * 8
  (swapped,) = checkpoint._checksums(exact[::-1])
  assert int(swapped) != int(right)


@pytest.mark.parametrize('dtype', ['bool', 'int8', 'bfloat16', 'int32'])
def test_checksum_of_any_dtype(dtype):
  """If it fails, a state with such an array cannot be saved."""
  ones = jnp.ones((2, 3), dtype)
  assert int(checkpoint._checksums(ones)[0]) != int(
      checkpoint._checksums(ones.at[1, 2].set(False))[0]
  )


def test_full_disk(small_disk):
  """If it fails, a full disk costs earlier checkpoints, or leaves rubbish."""
  _, checkpoints = saved(small_disk, train={'keep_checkpoints': 1})
  assert checkpoints.steps() == [2]
  free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
  (small_disk / 'filler').write_bytes(b'x' * (free - 20_000))
  with pytest.raises(ConfigError) as error:
    checkpoints.save(make_state(3), {})
  assert 'no space left on the disk' in one_line(error)
  assert 'checkpoints kept: 2' in one_line(error)
  assert os.listdir(small_disk / 'checkpoints') == ['2']
  (small_disk / 'filler').unlink()
  state, _ = checkpoints.restore(make_state(0))
  assert int(state.step) == 2
  checkpoints.save(make_state(3), {})
  assert checkpoints.steps() == [3]


def test_full_disk_for_metrics(small_disk):
  """If it fails, a full disk makes the run wait for ever, or die unheard."""
  writer = metrics.MetricWriter(str(small_disk), 0)
  free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
  (small_disk / 'filler').write_bytes(b'x' * free)
  with pytest.raises(OSError) as error:
    for step in range(1, 1000):
      writer.write({'step': step, 'split': 'train', 'loss': 1.0})
      writer.flush()
  assert failures.is_disk_full(error.value)


def test_disk_full_is_recognised_behind_other_errors():
  """If it fails, the message says 'damaged' where it should say 'full'."""
  try:
    try:
      raise OSError(errno.ENOSPC, 'x')
    except OSError as error:
      raise ValueError('wrapped') from error
  except ValueError as error:
    assert failures.is_disk_full(error)
  assert failures.is_disk_full(ValueError('write: No space left on device'))
  assert not failures.is_disk_full(ValueError('other'))


PROCESS = '''
import json
import sys

import jax

port, index, workdir = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(index))

from hope_jax import sharding
from hope_jax.config import MeshConfig
from hope_jax.train import checkpoint, setup
from tests import standin

config = standin.make_config(mesh={'data': 2}, workdir=workdir)
parts = setup.make(config, standin.Standin())
with jax.set_mesh(parts.mesh):
  state = parts.create()
  checkpoints = checkpoint.Checkpoints(config)
  # Texts of two lengths, as arrays are gathered that must have one.
  checkpoints.save(state, {'position': 'x' * (5 + 7 * int(index))})
  restored, position = checkpoints.restore(parts.shapes)
  checkpoints.close()
same = jax.tree.map(
    lambda a, b: (a.addressable_data(0) == b.addressable_data(0)).all(),
    state.params, restored.params,
)
print(json.dumps([all(map(bool, jax.tree.leaves(same))), position]))
'''


def test_each_process_has_its_own_data(tmp_path):
  """If it fails, all processes but the first go on at a wrong position.

  Two real processes save one checkpoint and read it; then one alone is told.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  env = dict(os.environ, PYTHONPATH=str(pathlib.Path(__file__).parents[2]))
  processes = [
      subprocess.Popen(
          [sys.executable, '-c', PROCESS, port, index, str(tmp_path)], env=env,
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      )
      for index in '01'
  ]
  for length, process in zip((5, 12), processes):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    same, position = json.loads(out.splitlines()[-1])
    assert same and position == {'position': 'x' * length}
  config = standin.make_config(workdir=tmp_path)
  alone = checkpoint.Checkpoints(config)
  with pytest.raises(ConfigError) as error:
    alone.restore(setup.make(config, standin.Standin()).shapes)
  assert 'was saved by 2 process(es)' in one_line(error)
  assert 'cannot go on with 1' in one_line(error)


def test_a_record_without_a_number_of_processes(tmp_path):
  """If it fails, checkpoints of earlier versions cannot be gone on with."""
  _, checkpoints = saved(tmp_path, steps=(1,))
  (path,) = (tmp_path / 'checkpoints' / '1' / 'about').glob('metadata')
  about = json.loads(path.read_text())
  assert about.pop('processes') == 1
  path.write_text(json.dumps(about))
  _, position = checkpoints.restore(make_state(0))
  assert position == {'place': 1}


def of_the_host():
  """What a process has one of, and a library must leave as it is."""
  loggers = [logging.getLogger(name) for name in (None, 'absl', 'asyncio')]
  return [
      sys.stdout, sys.stderr, sys.unraisablehook, sys.excepthook,
      threading.excepthook, warnings.showwarning, logging.root.manager.disable,
      *((x.level, x.disabled, x.handlers[:], x.filters[:]) for x in loggers),
  ]


@pytest.mark.parametrize('harm', ['none', 'read', 'write'])
def test_the_host_is_left_alone(tmp_path, monkeypatch, harm):
  """If it fails, importing hope_jax costs a program its reports of errors."""
  before = of_the_host()
  _, checkpoints = saved(tmp_path, steps=(1,))
  if harm == 'none':
    checkpoints.restore(make_state(0))
  elif harm == 'read':
    for path in files_of(tmp_path, 1):
      damage(path, 'cut')
    with pytest.raises(ConfigError):
      checkpoints.restore(make_state(0))
  else:

    def fail(*args, **kwargs):
      assert of_the_host()[:7] == before[:7]
      raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
    with pytest.raises(ConfigError, match='no space left on the disk'):
      checkpoints.save(make_state(2), {})
  assert of_the_host() == before


def test_what_a_program_hides(monkeypatch):
  """If it fails, an error of ours is hidden, or one of Orbax' is shown."""
  seen = []
  monkeypatch.setattr(sys, '__unraisablehook__', seen.append)
  monkeypatch.setattr(sys, 'unraisablehook', None)
  failures.hide_abandoned_work()
  report = lambda error, owner: sys.unraisablehook(
      types.SimpleNamespace(exc_value=error, object=owner)
  )
  orbax = types.SimpleNamespace(
      cr_code=types.SimpleNamespace(co_filename='/x/orbax/checkpoint/a.py')
  )
  report(RuntimeError('Event loop is closed'), None)
  report(ValueError('cut'), orbax)
  assert not seen
  report(ValueError('ours'), None)
  report(ValueError('ours'), len)
  assert len(seen) == 2
  with warnings.catch_warnings(record=True) as told:
    failures.hide_abandoned_work()
    warnings.warn(
        "coroutine 'f' was never awaited", RuntimeWarning, stacklevel=1
    )
    warnings.warn('ours', stacklevel=1)
  assert [str(warning.message) for warning in told] == ['ours']


def test_an_error_is_logged_once(caplog):
  """If it fails, a failure fills the log, or other errors vanish from it."""
  log = logging.getLogger('asyncio')
  with pytest.raises(ValueError), failures.logged_once():
    log.error('Task exception was never retrieved: /x/orbax/checkpoint/a.py')
    log.warning('slow, in /x/orbax/checkpoint/a.py')
    log.error('Task exception of the host')
    raise ValueError
  log.error('later, in orbax')
  assert [record.getMessage() for record in caplog.records] == [
      'slow, in /x/orbax/checkpoint/a.py', 'Task exception of the host',
      'later, in orbax',
  ]


def test_workdir_that_is_a_file(tmp_path):
  """If it fails, a workdir that cannot be is answered with a trace."""
  path = pathlib.Path(tmp_path / 'file')
  path.write_text('precious')
  with pytest.raises(ConfigError, match='cannot write to workdir'):
    checkpoint.claim_workdir(standin.make_config(workdir=path))
  assert path.read_text() == 'precious'
