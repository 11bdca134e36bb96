"""Eight CPU devices, which only a process of their own can have."""

import os
import subprocess
import sys

MISSING = 'needs eight devices; test_on_eight_devices has them'


def run(file: str, keyword: str) -> None:
  """Runs the tests of a file that match in such a process; none may skip."""
  env = dict(os.environ)
  env['XLA_FLAGS'] = (
      env.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  )
  done = subprocess.run(
      [sys.executable, '-m', 'pytest', '-q', '-n', '0', file, '-k', keyword],
      env=env, capture_output=True, text=True, check=False,
  )
  assert done.returncode == 0, done.stdout[-3000:]
  assert 'skipped' not in done.stdout.splitlines()[-1], done.stdout[-300:]
