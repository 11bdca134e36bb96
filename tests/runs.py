"""Runs of the stand-in in processes of their own, to be stopped and killed.

As a script it is `hope_jax.main` with the stand-in for its model.
"""

import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def write_corpus(folder):
  """Forty short texts, so that some are held out."""
  folder.mkdir()
  for i in range(40):
    (folder / f'{i}.txt').write_text(f'text number {i} of a corpus. ' * 8)
  return folder


def train_args(corpus, workdir, **fields):
  """The command line; e.g. steps=4, of `train`."""
  fields = {'steps': 10**6, 'log_every': 1, 'eval_every': 10**6} | fields
  return [
      'train', '--config=tiny', f'--workdir={workdir}',
      '--config.data.source=files', f'--config.data.path={corpus}/*.txt',
      '--config.data.holdout=0.2', '--config.data.sequence_length=32',
      '--config.optimizer.warmup_steps=1',
      *(f'--config.train.{name}={value}' for name, value in fields.items()),
  ]


def start(args, cache, **options):
  """Starts a command; `cache` keeps what is compiled, for the next one."""
  env = dict(
      os.environ, PYTHONPATH=str(ROOT), JAX_COMPILATION_CACHE_DIR=str(cache),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='0',
  )
  options = {'stderr': subprocess.PIPE, 'stdout': subprocess.PIPE} | options
  return subprocess.Popen(
      [sys.executable, __file__, *args], env=env, cwd=ROOT, text=True, **options
  )


def wait_for(process, happened, seconds=120):
  """Returns what `happened()` gives, once it is true."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    found = happened()
    if found:
      return found
    assert process.poll() is None, process.communicate()[1][-2000:]
    time.sleep(0.001)
  raise AssertionError('it did not happen')


def saving(workdir, step):
  """Returns whether a checkpoint of `step` or later is being written."""
  folder = workdir / 'checkpoints'
  names = os.listdir(folder) if folder.is_dir() else []
  return any(
      'tmp' in name and int(name.partition('.')[0]) >= step for name in names
  )


if __name__ == '__main__':
  from hope_jax import main
  from hope_jax.models import factory
  from tests import standin

  factory.language_model = standin.Standin
  sys.exit(main.main(sys.argv[1:]))
