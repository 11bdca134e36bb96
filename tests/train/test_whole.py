"""The real model through the real loop: what the stand-in cannot show."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / 'experiments' / 'tiny.py'


def run(workdir, *more, devices=1):
  """Trains experiments/tiny.py for twenty steps; returns its records."""
  env = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  # One parameter tree and one step, compiled once for all runs of a mesh.
  env['JAX_COMPILATION_CACHE_DIR'] = str(workdir.parent / 'compiled')
  args = [
      '--config.train.log_every=1', '--config.train.eval_every=3',
      '--config.train.checkpoint_every=2', '--config.data.batch_size=4',
      *more,
  ]
  done = subprocess.run(
      [sys.executable, '-m', 'hope_jax.main', 'train', f'--config={TINY}',
       f'--workdir={workdir}', *args],
      capture_output=True, text=True, env=env, check=False, cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  records = map(json.loads, (workdir / 'metrics.jsonl').open())
  return [
      {k: v for k, v in record.items() if k != 'tokens_per_second'}
      for record in records
  ]


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole') / 'one')


def test_an_optimizer_of_the_command_line(tmp_path):
  """If it fails, the project's optimizers are not what its trainer offers."""
  workdir = tmp_path / 'm3'
  records = run(
      workdir, '--config.optimizer.name=m3',
      '--config.optimizer.options.period=2', '--config.train.steps=5',
      '--config.model.architecture=transformer', '--config.model.layers=1',
  )
  assert records[-1]['step'] == 5
  values = json.loads((workdir / 'config.json').read_text())['optimizer']
  assert values['name'] == 'm3' and values['options'] == {'period': 2}
  assert values['b1'] is None


@pytest.mark.slow  # Compiles a whole Hope, once more for eight devices.
def test_hope_on_eight_devices(one_device, tmp_path):
  """If it fails, sharding changes what Hope learns.

  data 2 x fsdp 2 x tensor 2. Sums run in another order, and the memories carry
  the difference along, hence 1e-3 of the loss after twenty steps.
  """
  eight = run(
      tmp_path / 'eight', '--config.mesh.data=2', '--config.mesh.fsdp=2',
      '--config.mesh.tensor=2', devices=8,
  )
  losses = [[r['loss'] for r in records] for records in (eight, one_device)]
  assert len(losses[1]) == 27
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.slow  # Needs the run of a whole Hope, and two processes more.
def test_hope_resumes_bit_for_bit(one_device, tmp_path):
  """If it fails, some part of a run is not in its checkpoint.

  Stopped by the clock after its first step, and started again.
  """
  workdir = tmp_path / 'stopped'
  first = run(workdir, '--config.train.max_seconds=0.001')
  assert len(first) == 1
  assert run(workdir) == one_device


@pytest.mark.slow  # Needs the run of a whole Hope.
def test_hope_learns(one_device):
  """If it fails, the parts work and the whole does not."""
  assert one_device[0]['loss'] < np.log(256) + 0.3
  assert one_device[-1]['split'] == 'heldout'
  assert one_device[-1]['loss'] < one_device[0]['loss'] - 0.5
  last = one_device[-2]
  counts = [last[f'updates/level_{i}'] for i in range(3)]
  assert counts == [20, 10, 5]
