"""Runs that are killed, again and again, and end as if nothing had happened."""

import functools
import json
import random
import time

import pytest

from tests import runs

STEPS = 30


def finished(args, cache):
  process = runs.start(args, cache)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors[-3000:]


def outcome(workdir):
  """The checksums of all arrays of the last checkpoint, and the records."""
  path = workdir / 'checkpoints' / str(STEPS) / 'about' / 'metadata'
  about = json.loads(path.read_text())
  records = map(json.loads, (workdir / 'metrics.jsonl').open())
  kept = [
      {k: v for k, v in record.items() if k != 'tokens_per_second'}
      for record in records
  ]
  sums = about['checksums']
  return sums['params'], sums['rest'], about['data'], kept


@pytest.mark.parametrize(
    'kills', [2, pytest.param(20, marks=pytest.mark.slow)]  # 22 starts.
)
def test_killed_runs_end_bit_for_bit(tmp_path, kills):
  """If it fails, a crash costs numbers, records, or the run.

  Every other kill is in the middle of a save, the others at any moment from the
  start of the process on; a checkpoint is due at each step.
  """
  corpus = runs.write_corpus(tmp_path / 'corpus')
  fields = {'steps': STEPS, 'checkpoint_every': 1, 'eval_every': 7}
  args = {
      name: runs.train_args(corpus, tmp_path / name, **fields)
      for name in ('whole', 'killed')
  }
  finished(args['whole'], tmp_path / 'cache')
  rng = random.Random(kills)
  workdir, in_saves = tmp_path / 'killed', 0
  for kill in range(kills):
    process = runs.start(args['killed'], tmp_path / 'cache')
    if kill % 2 == 0:
      # About one step further each time, so that all of them fit in the run.
      step = 1 + max(map(int, (
          p.name for p in workdir.glob('checkpoints/*') if p.name.isdigit()
      )), default=0)
      runs.wait_for(process, functools.partial(runs.saving, workdir, step))
      time.sleep(rng.random() * 0.05)
    else:
      time.sleep(rng.random() * 8)
    process.kill()
    process.communicate()
    in_saves += any('tmp' in p.name for p in workdir.glob('checkpoints/*'))
  finished(args['killed'], tmp_path / 'cache')
  assert in_saves >= kills // 4, 'the kills missed the saves'
  assert outcome(workdir) == outcome(tmp_path / 'whole')
  assert not [p for p in workdir.glob('checkpoints/*') if 'tmp' in p.name]
