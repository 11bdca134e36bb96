"""Metrics on the disk: one record a step, whatever was interrupted."""

import struct

from tensorboardX.proto.event_pb2 import Event

from hope_jax.train import metrics


def write(tmp_path, step, upto):
  writer = metrics.MetricWriter(str(tmp_path), step)
  for s in range(step + 1, upto + 1):
    writer.write({'step': s, 'split': 'train', 'loss': float(s)})
  writer.close()


def events(tmp_path):
  """Reads event files as TensorBoard does, without checking checksums."""
  found = []
  for path in sorted((tmp_path / 'tensorboard').iterdir()):
    data, place = path.read_bytes(), 0
    while place < len(data):
      (size,) = struct.unpack('Q', data[place : place + 8])
      found.append(Event.FromString(data[place + 12 : place + 12 + size]))
      place += 16 + size
  return found


def test_going_on_leaves_one_record_a_step(tmp_path):
  """If it fails, curves of resumed runs run back and forth."""
  write(tmp_path, 0, 5)
  write(tmp_path, 3, 6)
  assert [r['step'] for r in metrics.read(str(tmp_path))] == [1, 2, 3, 4, 5, 6]


def test_record_cut_off_by_a_crash(tmp_path):
  """If it fails, half a line makes a run impossible to go on with."""
  write(tmp_path, 0, 2)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 3, "spl')
  assert [r['step'] for r in metrics.read(str(tmp_path))] == [1, 2]
  write(tmp_path, 2, 3)
  assert [r['step'] for r in metrics.read(str(tmp_path))] == [1, 2, 3]


OTHERS = [
    b'null', b'3', b'[]', b'{}', b'{"split": "train", "loss": 1.0}',
    b'{"step": "3", "split": "train"}', b'{"step": true, "split": "train"}',
    b'{"step": -1, "split": "train"}', b'{"step": 1.5, "split": "train"}',
    b'{"step": 2}', b'{"step": 2, "split": 7}', b'\xff\xfe', b'\x00',
    b'{"step": 2, "split": "train", "loss": "low"}', b'[' * 100_000, b'',
    b'{"step": 1' + b'0' * 5000 + b', "split": "train"}',
    b'{"step": 3, "spl',
]


def test_lines_that_are_no_records(tmp_path):
  """If it fails, a line of another hand ends a run for good."""
  write(tmp_path, 0, 1)
  path = tmp_path / 'metrics.jsonl'
  good = path.read_bytes()
  path.write_bytes(b'\n'.join([*OTHERS[:9], good.strip(), *OTHERS[9:]]))
  records, others = metrics.read_and_count(str(tmp_path))
  assert [r['step'] for r in records] == [1] and others == len(OTHERS)
  write(tmp_path, 1, 2)
  records, others = metrics.read_and_count(str(tmp_path))
  assert [r['step'] for r in records] == [1, 2] and others == 0


def test_tensorboard_gets_the_same_numbers(tmp_path):
  """If it fails, TensorBoard shows other numbers, or steps twice.

  A session that starts at step 4 tells it to forget what it has from there on.
  """
  write(tmp_path, 0, 5)
  write(tmp_path, 3, 6)
  values, starts = {}, []
  for event in events(tmp_path):
    if event.HasField('session_log'):
      starts.append(event.step)
    for value in event.summary.value:
      assert value.tag == 'train/loss'
      values.setdefault(event.step, []).append(value.simple_value)
  assert starts == [1, 4]
  assert {step: set(v) for step, v in values.items()} == {
      step: {float(step)} for step in range(1, 7)
  }
