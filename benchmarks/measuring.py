"""Measures one training step in this process; no dependencies.

Shared by the workers of train_step.py, each of which runs in a process, and
where need be an environment, of its own.
"""

from collections.abc import Callable, Mapping
import json
import resource
import statistics
import time
from typing import Any

# A first step slower than this is not repeated: it is itself the measurement.
# Whatever it spends on setting up is by then a small part.
PATIENCE_SECONDS = 60.0


def measure(
    step: Callable[[], float],
    *,
    tokens: int,
    seconds: float,
    compiled: bool,
) -> dict[str, Any]:
  """Runs `step` until `seconds` have gone by and reports its median cost.

  Args:
    step: one full training step; returns its loss once everything is computed.
    tokens: tokens that a step trains on.
    seconds: wall-clock time to fill with measured steps (at least one, at most
      twenty).
    compiled: whether the first step compiles, and so never counts.

  Returns:
    Numbers by name: steps, loss (the last), seconds and cpu_seconds a step,
    tokens_per_second, tokens_per_cpu_second, warm_up_seconds, and
    peak_rss_bytes of the process so far, compilation included. CPU seconds are
    those of all threads of the process.
  """

  def timed() -> tuple[float, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    return time.perf_counter() - wall, time.process_time() - cpu, loss

  first = timed()
  runs = []
  if not compiled and first[0] > PATIENCE_SECONDS:
    runs.append(first)
  while not runs or (sum(r[0] for r in runs) < seconds and len(runs) < 20):
    runs.append(timed())
  wall = statistics.median(r[0] for r in runs)
  cpu = statistics.median(r[1] for r in runs)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return {
      'steps': len(runs),
      'loss': runs[-1][2],
      'seconds': wall,
      'cpu_seconds': cpu,
      'tokens_per_second': tokens / wall,
      'tokens_per_cpu_second': tokens / cpu,
      'warm_up_seconds': first[0],
      # Linux counts it in KiB.
      'peak_rss_bytes': usage.ru_maxrss * 1024,
  }


def report(result: Mapping[str, Any]) -> None:
  """Hands `result` to train_step.py: the last line of standard output."""
  print('\n' + json.dumps(result), flush=True)
