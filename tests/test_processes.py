"""A run of several processes: one writer, and every token counts once."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from hope_jax import run
from hope_jax.models import factory
from tests import standin

ROOT = pathlib.Path(__file__).parents[1]
PROCESS = '''
import json
import sys

import jax

port, index, fields = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(index))

from hope_jax import run
from hope_jax.models import factory
from tests import standin

factory.language_model = standin.Standin
config = run.load('tiny', json.loads(fields))
result = run.train(config, progress=False)
print(json.dumps([result.history[-1], run.evaluate(config)]))
'''


def test_eval_counts_each_token_once(tmp_path, monkeypatch):
  """If it fails, eval of two processes measures every text twice.

  Two real processes train and measure; then one measures alone.
  """
  (tmp_path / 'texts').mkdir()
  for i in range(40):
    text = f'text number {i} of a corpus. ' * (3 + i % 7)
    (tmp_path / 'texts' / f'{i}.txt').write_text(text)
  fields = {
      'data.source': 'files', 'data.path': f'{tmp_path}/texts/*.txt',
      'data.holdout': 0.3, 'data.sequence_length': 32, 'data.batch_size': 4,
      'train.steps': 2, 'train.eval_batches': 3, 'optimizer.warmup_steps': 1,
      'mesh.data': 2, 'workdir': str(tmp_path / 'run'),
  }
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  processes = [
      subprocess.Popen(
          [sys.executable, '-c', PROCESS, port, index, json.dumps(fields)],
          env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True,
          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      )
      for index in '01'
  ]
  found = []
  for process in processes:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    found += json.loads(out.splitlines()[-1])
  monkeypatch.setattr(factory, 'language_model', standin.Standin)
  alone = run.evaluate(run.load('tiny', fields | {'mesh.data': 1}))
  assert alone['tokens'] > 100
  for scores in found:
    assert scores['tokens'] == alone['tokens']
    assert scores['bytes'] == alone['bytes']
    assert scores['loss'] == pytest.approx(alone['loss'], rel=1e-5)
  records = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(r)['split'] for r in records] == ['train', 'heldout']
