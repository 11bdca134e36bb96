#!/usr/bin/env bash
# tensorboardX: a writer opened in the same second empties the file of the one before.
#
# tensorboardX 2.6.5.
#
# Expected: the docstrings say that a writer makes a new event file in the folder. So a
# folder can be written to again: after a restart, or by a second writer.
#
# Seen: a file is named after the second and the host, and opened for writing from its
# start. Two writers of one second have one file; the second empties it, and while both
# are open each writes at a place of its own, into the records of the other. Nothing is
# raised or logged.
#
#   one writer closed, the next opened in the same second:
#     1 file; scalars written 20, left 10: after/0 ... after/9
#   two writers open at once:
#     1 file; scalars written 40, readable before the first broken record: 9
#   with filename_suffix='.a' and '.b':
#     2 files; scalars written 40, readable: 40
#
# Why it matters: the processes of one machine start together, and a training and an
# evaluation writer are often opened one after the other. Curves then miss points, or end
# early. (Reported: github.com/lanpa/tensorboardX/issues/776.)
#
# Here: train/metrics.py gives the file a suffix, the step that the run starts from, and
# only the first process writes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorboardX==2.6.5 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'EOF'
import pathlib
import struct
import sys
import tempfile
import time

from tensorboardX import SummaryWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c


def readable(path):
  """The scalars of an event file, up to the first record that is broken."""
  data, at, scalars = path.read_bytes(), 0, []
  while at + 12 <= len(data):
    size, check = struct.unpack('<QI', data[at : at + 12])
    body = data[at + 12 : at + 12 + size]
    tail = data[at + 12 + size : at + 16 + size]
    if (
        check != masked_crc32c(data[at : at + 8])
        or len(tail) < 4
        or struct.unpack('<I', tail)[0] != masked_crc32c(body)
    ):
      break
    event = event_pb2.Event.FromString(body)
    scalars += [f'{v.tag}/{event.step}' for v in event.summary.value]
    at += 16 + size
  return scalars


def fill(writer, name, steps):
  for step in steps:
    writer.add_scalar(name, 0.5, step)
  # A thread writes them; `flush` puts on the disk what it has got to.
  time.sleep(0.1)
  writer.flush()


def start_of_second():
  time.sleep(1 - time.time() % 1)
  return int(time.time())


def result(folder):
  files = sorted(pathlib.Path(folder).iterdir())
  return len(files), [scalar for file in files for scalar in readable(file)]


def one_after_the_other(folder):
  first = SummaryWriter(folder)
  fill(first, 'before', range(10))
  first.close()
  second = SummaryWriter(folder)
  opened = int(time.time())
  fill(second, 'after', range(10))
  second.close()
  return opened


def both_at_once(folder, suffixes=('', '')):
  a = SummaryWriter(folder, filename_suffix=suffixes[0])
  fill(a, 'loss', range(10))
  b = SummaryWriter(folder, filename_suffix=suffixes[1])
  opened = int(time.time())
  fill(b, 'accuracy', range(10))
  fill(a, 'loss', range(10, 20))
  fill(b, 'accuracy', range(10, 20))
  a.close()
  b.close()
  return opened


def within_a_second(write, *args):
  for _ in range(10):
    folder = tempfile.mkdtemp(dir=sys.argv[1])
    second = start_of_second()
    if write(folder, *args) == second:
      return result(folder)
  sys.exit('too slow: a writer was never opened within a second of another')


files, left = within_a_second(one_after_the_other)
print('one writer closed, the next opened in the same second:')
print(
    f'  {files} file; scalars written 20, left {len(left)}:'
    f' {left[0]} ... {left[-1]}'
)
both_files, both = within_a_second(both_at_once)
print('two writers open at once:')
print(
    f'  {both_files} file; scalars written 40, readable before the first broken'
    f' record: {len(both)}'
)
own_files, own = within_a_second(both_at_once, ('.a', '.b'))
print("with filename_suffix='.a' and '.b':")
print(f'  {own_files} files; scalars written 40, readable: {len(own)}')

as_stated = (
    files == 1
    and left == [f'after/{step}' for step in range(10)]
    and both_files == 1
    and len(both) < 40
    and (own_files, len(own)) == (2, 40)
)
sys.exit(0 if as_stated else 'changed: this is no longer as stated')
EOF
