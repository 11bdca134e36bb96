"""The machine, versions and commit that a number was measured with."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax


def describe() -> dict[str, str]:
  """Returns what the numbers depend on besides the configuration."""
  device = jax.devices()[0]
  name = f'{jax.device_count()} x {device.device_kind}'
  if device.platform == 'cpu':
    cores = len(os.sched_getaffinity(0)) if hasattr(
        os, 'sched_getaffinity'
    ) else os.cpu_count()
    name = f'{cores} CPU cores'
  facts = {
      'device': name,
      'processor': _processor(),
      'system': platform.platform(),
      'python': platform.python_version(),
  }
  for library in ('jax', 'jaxlib', 'flax', 'optax', 'hope_jax'):
    try:
      facts[library] = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
      continue
  commit = _commit()
  return facts | {'commit': commit} if commit else facts


def _processor() -> str:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          return line.partition(':')[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def _commit() -> str:
  """Returns the commit of the code that runs, '+' for changes; '' unknown."""
  root = pathlib.Path(__file__).resolve().parents[2]
  # An installed copy may lie inside a repository of something else.
  if not (root / '.git').exists():
    return ''
  command = ['git', '-C', str(root), 'describe', '--always', '--dirty=+']
  try:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return ''
  return found.stdout.strip()
