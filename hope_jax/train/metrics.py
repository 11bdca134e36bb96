"""What a run writes down: one JSON object a line, and TensorBoard events.

`workdir/metrics.jsonl` holds records like
`{"step": 20, "split": "train", "loss": 2.1, ...}`; the same numbers go to
`workdir/tensorboard`. A run that goes on from step n first drops the records
later than n, since it will write them again.
"""

import json
import os
import time
from typing import Any

from tensorboardX.event_file_writer import EventsWriter

# Made by protobuf when it is imported.
from tensorboardX.proto.event_pb2 import (
  Event,  # pyright: ignore[reportAttributeAccessIssue]
  SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.summary import scalar

from hope_jax.files import replacing, require_file

Record = dict[str, Any]


def read(workdir: str) -> list[Record]:
  """Returns the records of a workdir; a line that is none is left out."""
  return read_and_count(workdir)[0]


def read_and_count(workdir: str) -> tuple[list[Record], int]:
  """Returns the records of a workdir, and the number of lines that are none.

  Such a line was cut off by a crash, or comes from another hand.

  Raises:
    OSError: the file cannot be read.
  """
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return [], 0
  require_file(path)
  records, count = [], 0
  with open(path, 'rb') as file:
    for line in file:
      count += 1
      try:
        record = json.loads(line)
      except (ValueError, RecursionError):
        continue
      if _is_record(record):
        records.append(record)
  return records, count - len(records)


def _is_record(value: Any) -> bool:
  """Whether a value is what `MetricWriter.write` takes."""
  if not isinstance(value, dict) or type(value.get('step')) is not int:
    return False
  numbers = value.keys() - {'step', 'split'}
  return (
      value['step'] >= 0
      and isinstance(value.get('split'), str)
      and all(type(value[name]) in (int, float) for name in numbers)
  )


class MetricWriter:
  """Appends records to a workdir."""

  def __init__(self, workdir: str, step: int):
    """Opens the files, and drops what was written after `step`.

    Args:
      workdir: the folder; it exists.
      step: the step that the run goes on from; 0 for a new one.

    Raises:
      OSError: the folder cannot be written to.
    """
    path = os.path.join(workdir, 'metrics.jsonl')
    kept = [r for r in read(workdir) if r['step'] <= step]
    with replacing(path) as file:
      file.writelines(json.dumps(record) + '\n' for record in kept)
    self._lines = open(path, 'a', encoding='utf-8')

    folder = os.path.join(workdir, 'tensorboard')
    os.makedirs(folder, exist_ok=True)
    # Written from this thread: SummaryWriter has one of its own, which dies
    # unseen on a full disk and leaves the caller waiting on its queue. The
    # suffix keeps two starts within a second in files of their own.
    self._events = EventsWriter(
        os.path.join(folder, 'events'), filename_suffix=f'.from_{step}'
    )
    # Tells TensorBoard to hide the events of earlier files from here on.
    self._events.write_event(
        Event(
            wall_time=time.time(),
            step=step + 1,
            session_log=SessionLog(status=SessionLog.START),
        )
    )

  def write(self, record: Record) -> None:
    """Appends a record with `step`, `split` and numbers."""
    self._lines.write(json.dumps(record) + '\n')
    self._lines.flush()
    for name, value in record.items():
      if name not in ('step', 'split'):
        self._events.write_event(
            Event(
                wall_time=time.time(),
                step=record['step'],
                summary=scalar(f'{record["split"]}/{name}', value),
            )
        )

  def flush(self) -> None:
    """Returns once everything written is on the disk."""
    self._lines.flush()
    os.fsync(self._lines.fileno())
    self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self._lines.close()
    self._events.close()
