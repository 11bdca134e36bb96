"""What `python -m hope_jax.main study` does, for tests."""

import pathlib

from hope_jax.config import experiment
from hope_jax.studies import runner

ROOT = pathlib.Path(__file__).parents[2]


def study(*args: str) -> int:
  """Runs the command with --config, --config.x=y and --render."""
  rest, overrides = experiment.split(args)
  (file,) = (a.removeprefix('--config=') for a in rest if '=' in a)
  return runner.command(file, overrides, render='--render' in rest)
