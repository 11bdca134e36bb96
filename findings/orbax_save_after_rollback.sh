#!/usr/bin/env bash
# Orbax' CheckpointManager saves nothing after an older step was restored.
#
# orbax-checkpoint 0.12.8, jax 0.10.2.
#
# Expected: `restore(step)` takes any step of the folder, and `save` writes when the
# options permit: here, at every step. `force=True` is documented as the way past
# `should_save`, and only existing steps as what it leaves alone.
#
# Seen: until the step passes the newest in the folder, `save` returns False, with
# nothing logged at any level. With `force=True` it writes, and makes the forced step
# the manager's latest; later saves work, and steps of the abandoned run stay among the
# new ones. The next process takes the highest number for the latest: the abandoned run.
#
#   steps 10, 20, 30 hold 0; 10 is restored, and from there on 1 is saved
#   save(15): False  save(20): False  save(30): False  log records: 0
#   save(15, force=True): True  save(20): StepAlreadyExistsError  save(25): True
#   latest of this manager:  step 25, holds 1
#   latest of a new manager: step 30, holds 0
#
# Why it matters: going back before a loss spike, or before a change of learning rate, is
# why one restores an older step. A loop that does not look at what `save` returns
# trains on without checkpoints; one that forces is continued from the wrong weights.
# (Reported for filling in earlier steps: github.com/google/orbax/issues/527.)
#
# Here: train/checkpoint.py, set_aside_after: once a run goes on from an older step, the
# later ones are moved out of the folder, and the manager is opened again.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoints" <<'EOF'
import logging
import sys

from absl import logging as absl_logging
import numpy as np
import orbax.checkpoint as ocp


class Records(logging.Handler):
  def __init__(self):
    super().__init__(0)
    self.seen = []

  def emit(self, record):
    self.seen.append(record.getMessage())


def opened():
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  return ocp.CheckpointManager(sys.argv[1], options=options)


def save(manager, step, value, **options):
  tree = {'a': np.full(3, value)}
  try:
    return manager.save(step, args=ocp.args.StandardSave(tree), **options)
  except ValueError as error:
    return type(error).__name__


def latest(manager):
  step = manager.latest_step()
  like = ocp.args.StandardRestore({'a': np.zeros(3, int)})
  return step, int(manager.restore(step, args=like)['a'][0])


manager = opened()
for step in (10, 20, 30):
  assert save(manager, step, 0) is True
manager.close()

print('steps 10, 20, 30 hold 0; 10 is restored, and from there on 1 is saved')
manager = opened()
manager.restore(10, args=ocp.args.StandardRestore({'a': np.zeros(3, int)}))
records = Records()
absl_logging.set_verbosity(absl_logging.DEBUG)
logging.basicConfig(level=logging.DEBUG, handlers=[records], force=True)
skipped = [save(manager, step, 1) for step in (15, 20, 30)]
logged = len(records.seen)
print(
    'save(15): {}  save(20): {}  save(30): {}'.format(*skipped),
    f' log records: {logged}',
)
forced = [
    save(manager, 15, 1, force=True), save(manager, 20, 1), save(manager, 25, 1)
]
print('save(15, force=True): {}  save(20): {}  save(25): {}'.format(*forced))
assert records.seen, 'the handler hears what a save that happens logs'
of_this = latest(manager)
manager.close()
print('latest of this manager:  step {}, holds {}'.format(*of_this))
manager = opened()
of_next = latest(manager)
manager.close()
print('latest of a new manager: step {}, holds {}'.format(*of_next))

as_stated = (
    skipped == [False] * 3
    and logged == 0
    and forced == [True, 'StepAlreadyExistsError', True]
    and of_this == (25, 1)
    and of_next == (30, 0)
)
sys.exit(0 if as_stated else 'changed: this is no longer as stated')
EOF
