"""One training step of hope_jax beside those of other packages, in one run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --only hope_jax --times 512

Each row is measured in a fresh process: forward, backward and AdamW, float32,
4 layers, width 256, 4 heads, bytes. Another package runs in a virtual
environment of its own, which is made the first time (a few minutes and 2 GB);
one that cannot be installed is left out, with the reason. README.md says what
the columns mean and what each package is asked to do.

Needs hope_jax installed, and a machine that does nothing else for about half an
hour.
"""

import argparse
from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / 'results' / 'train_step.json'

# torch first and pinned, or a peer pulls in whichever is newest.
TORCH = 'torch==2.13.0'
PEERS = {
    'nested-learning': 'nested-learning==0.2.0',
    'titans-pytorch': 'titans-pytorch==0.5.5',
}
ROWS = (
    'hope_jax/hope-mlp',
    'hope_jax/hope-matrix',
    'hope_jax/hope-attention',
    'hope_jax/titans',
    'hope_jax/transformer',
    'nested-learning/hope',
    'nested-learning/hope-no-writes',
    'nested-learning/hope-attention',
    'nested-learning/transformer',
    'titans-pytorch/mac',
)


class Unavailable(Exception):
  """A row that cannot be measured here; the message says why."""


def complaint(stderr: str) -> str:
  """Returns the line of a traceback, or of pip, that names the error."""
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  named = [line for line in lines if re.match(r'[\w.]*(Error|ERROR)\b', line)]
  return (named or lines or ['no output'])[-1]


def environment(peer: str, folder: pathlib.Path) -> str:
  """Returns the interpreter of the peer's environment, made if need be.

  Args:
    peer: a key of PEERS.
    folder: where environments live.

  Raises:
    Unavailable: if it cannot be installed.
  """
  home = folder / peer
  python = home / 'bin' / 'python'
  stamp = home / 'installed.txt'
  wanted = f'{TORCH} {PEERS[peer]}'
  if stamp.exists() and stamp.read_text() == wanted:
    return str(python)
  print(f'installing {wanted} into {home}', flush=True)
  pip = [str(python), '-m', 'pip', 'install', '--quiet']
  for command in (
      [sys.executable, '-m', 'venv', '--clear', str(home)],
      [*pip, TORCH],
      [*pip, PEERS[peer]],
  ):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      raise Unavailable(f'not installed: {complaint(done.stderr)}')
  stamp.write_text(wanted)
  return str(python)


def run_worker(
    python: str, script: str, arguments: Sequence[str], timeout: float
) -> dict[str, Any]:
  """Runs a worker and returns what it reports.

  Args:
    python: interpreter.
    script: file name of the worker, beside this file.
    arguments: its command line.
    timeout: seconds it may take.

  Raises:
    Unavailable: if it fails, or takes longer.
  """
  env = dict(os.environ)
  # Threads that wait by spinning, as those of PyTorch's OpenMP do, count as CPU
  # time: on a busy machine several times the work. A quiet one loses nothing.
  env['OMP_WAIT_POLICY'] = 'PASSIVE'
  if script == 'ours.py':
    env['JAX_PLATFORMS'] = 'cpu'
    env['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(ROOT), env.get('PYTHONPATH')])
    )
  command = [python, str(HERE / script), *arguments]
  try:
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=timeout,
        check=False,
    )
  except subprocess.TimeoutExpired as error:
    raise Unavailable(f'more than {timeout:.0f} s') from error
  if done.returncode:
    raise Unavailable(f'failed: {complaint(done.stderr)}')
  return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
  """Returns what the numbers depend on, besides the code."""
  model = platform.processor()
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      model = line.split(':', 1)[1].strip()
      break
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return {
      'cpu': model,
      'cores': len(os.sched_getaffinity(0)),
      'memory_bytes': pages,
      'system': platform.platform(),
      'load_average_before': os.getloadavg()[0],
  }


def commit() -> str:
  """Returns the commit, with '-dirty' if tracked files were changed."""
  done = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=12'], cwd=ROOT,
      capture_output=True, text=True, check=False,
  )
  return done.stdout.strip() or 'unknown'


def table(report: dict[str, Any]) -> str:
  """Formats the results for a terminal, a row a model."""
  times = report['configuration']['times']
  short, long = times[0], times[-1]
  header = ['model', 'parameters', f'tok/s T={short}', f'tok/CPU-s T={short}']
  if long != short:
    header += [f'tok/CPU-s T={long}', f'CPU {long}/{short}']
  header += [f'RSS GB T={t}' for t in times] + ['floor GF', 'of GEMM peak']
  peak = report.get('gemm', {}).get('flops_per_cpu_second')
  rows = [header]
  for name, by_time in report['results'].items():
    cells = [by_time.get(str(t), {'error': ''}) for t in times]
    first, last = cells[0], cells[-1]
    if 'error' in first:
      rows.append([name, first['error']])
      continue

    def show(cell, key, form, scale=1.0):
      return '-' if key not in cell else format(cell[key] * scale, form)

    row = [
        name,
        show(first, 'parameters', '.2f', 1e-6) + ' M',
        show(first, 'tokens_per_second', '.0f'),
        show(first, 'tokens_per_cpu_second', '.0f'),
    ]
    if long != short:
      ratio = '-'
      if 'cpu_seconds' in last:
        ratio = f'{last["cpu_seconds"] / first["cpu_seconds"]:.2f}'
      row += [show(last, 'tokens_per_cpu_second', '.0f'), ratio]
    row += [show(cell, 'peak_rss_bytes', '.2f', 1e-9) for cell in cells]
    row.append(show(first, 'floor_flops', '.0f', 1e-9))
    share = '-'
    if peak and 'floor_flops' in first:
      rate = first['floor_flops'] / first['cpu_seconds']
      share = f'{100 * rate / peak:.0f} %'
    rows.append([*row, share])
  widths = [
      max(len(r[i]) for r in rows if len(r) == len(header))
      for i in range(len(header))
  ]
  lines = []
  for row in rows:
    cells = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]
    if len(row) == 2:
      cells = [row[1]]
    lines.append('  '.join([row[0].ljust(widths[0]), *cells]).rstrip())
  for name, by_time in report['results'].items():
    for length, cell in by_time.items():
      if 'error' in cell and length != str(short):
        lines.append(f'{name}, T={length}: {cell["error"]}')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      '--only', nargs='+', metavar='PART', default=[],
      help='measure the rows whose name contains one of these: '
      + ', '.join(ROWS),
  )
  parser.add_argument(
      '--times', nargs='+', type=int, default=[512, 2048], metavar='T',
      help='lengths of a sequence (default: 512 2048)',
  )
  parser.add_argument('--batch', type=int, default=4, help='default: 4')
  parser.add_argument(
      '--seconds', type=float, default=20.0,
      help='measure each row for at least this long (default: 20)',
  )
  parser.add_argument(
      '--timeout', type=float, default=1800.0,
      help='give a row up after this many seconds (default: 1800)',
  )
  parser.add_argument(
      '--environments', type=pathlib.Path, default=ROOT / '.venv-peers',
      help="where the other packages' environments live"
      ' (default: .venv-peers in the repository)',
  )
  parser.add_argument(
      '--output', type=pathlib.Path,
      help=f'JSON file to write (default, without --only: {RESULTS})',
  )
  flags = parser.parse_args()

  rows = [
      row for row in ROWS if not flags.only or any(p in row for p in flags.only)
  ]
  for part in flags.only:
    if not any(part in row for row in ROWS):
      parser.error(f'--only {part} matches none of: {", ".join(ROWS)}')
  # Installed before anything is measured, which it would disturb.
  pythons = {}
  for peer in PEERS:
    if any(row.startswith(peer) for row in rows):
      try:
        pythons[peer] = environment(peer, flags.environments)
      except Unavailable as error:
        pythons[peer] = error
  report = {
      'configuration': {
          'batch': flags.batch, 'times': flags.times, 'layers': 4, 'dim': 256,
          'heads': 4, 'vocab': 256, 'dtype': 'float32',
          'seconds': flags.seconds,
      },
      'date': datetime.date.today().isoformat(),
      'commit': commit(),
      'machine': machine(),
      'results': {row: {} for row in rows},
  }
  report['gemm'] = run_worker(sys.executable, 'ours.py', ['gemm'], 300)
  print(
      'float32 GEMM:'
      f' {report["gemm"]["flops_per_second"] / 1e9:.0f} GFLOP/s,'
      f' {report["gemm"]["flops_per_cpu_second"] / 1e9:.0f} GFLOP/CPU-s'
  )
  plan = [(row, length) for row in rows for length in flags.times]
  for i, (row, length) in enumerate(plan):
    print(
        f'[{i + 1}/{len(plan)}] {row}, T={length} ...', end=' ', flush=True
    )
    start = time.monotonic()
    package = row.split('/')[0]
    try:
      python, script = sys.executable, 'ours.py'
      if package in PEERS:
        python, script = pythons[package], 'peers.py'
      if isinstance(python, Unavailable):
        raise python
      arguments = [
          row, '--batch', str(flags.batch), '--time', str(length),
          '--seconds', str(flags.seconds),
      ]
      result = run_worker(python, script, arguments, flags.timeout)
      print(
          f'{result["tokens_per_cpu_second"]:.0f} tok/CPU-s,'
          f' {result["peak_rss_bytes"] / 1e9:.2f} GB'
          f' ({time.monotonic() - start:.0f} s)'
      )
    except Unavailable as error:
      result = {'error': str(error)}
      print(error)
    report['results'][row][str(length)] = result
  print('\n' + table(report))
  output = flags.output or (None if flags.only else RESULTS)
  if output:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + '\n')
    print(f'\nwritten to {output}')


if __name__ == '__main__':
  main()
