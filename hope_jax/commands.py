"""The commands of `hope_jax.main`: each does one thing, and says what it did.

Each takes the parsed command line and returns the exit code.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import re
import shlex
import sys
from typing import Any, NamedTuple

import jax

from hope_jax import console, interrupts, run, sharding
from hope_jax.config import ConfigError
from hope_jax.config.study import StudyConfig
from hope_jax.infer import generate as sampling


class Arguments(NamedTuple):
  """A parsed command line."""

  flags: Any  # The values of main's flags, by attribute.
  overrides: Sequence[tuple[str, str]]  # Of --config.NAME=TEXT.
  line: Sequence[str]  # As it was given.


def again(args: Sequence[str]) -> str:
  """Returns the command line that goes on with a run."""
  kept, args = [], list(args)
  while args:
    arg = args.pop(0)
    if arg == '--checkpoint_step':
      args.pop(0)
    elif not arg.startswith('--checkpoint_step='):
      kept.append(arg)
  return shlex.join([sys.executable, '-m', 'hope_jax.main', *kept])


def _load(args: Arguments) -> run.Config:
  try:
    return run.load(
        args.flags.config, args.overrides, workdir=args.flags.workdir
    )
  except ConfigError as error:
    unknown = re.match(r"unknown field '(\w+)", str(error))
    of_study = {f.name for f in dataclasses.fields(StudyConfig)}
    if unknown and unknown[1] in of_study:
      added = any(n.partition('.')[0] == unknown[1] for n, _ in args.overrides)
      file = 'FILE' if added else args.flags.config
      raise ConfigError(
          f'{unknown[1]!r} is a field of a study, which another command runs:'
          f' study --config={file}'
      ) from error
    raise


def _stopped(why: str, args: Arguments) -> int:
  """Tells how to go on with a run that is not done; returns the exit code."""
  if why != 'done':
    console.say(f'stopped ({why}) and saved; to go on:\n  {again(args.line)}')
  return interrupts.exit_code(why) if why.startswith('SIG') else 0


def train(args: Arguments) -> int:
  """Trains, and says where everything is."""
  config = _load(args)
  result = run.train(config, checkpoint_step=args.flags.checkpoint_step)
  console.say(f'step {int(result.state.step)} of {config.train.steps};'
              f' everything is in {config.workdir}')
  return _stopped(result.stopped, args)


def quickstart(args: Arguments) -> int:
  """Trains, measures and reports."""
  # Only here, as in `study`: it draws charts, which no other command needs.
  from hope_jax.studies import quickstart as quickstart_lib

  if not (args.flags.config or args.flags.workdir):
    args.flags.config = 'quickstart'
  results = quickstart_lib.run(
      _load(args), checkpoint_step=args.flags.checkpoint_step
  )
  return _stopped(results['training']['stopped'], args)


def evaluate(args: Arguments) -> int:
  """Prints held-out metrics as a line of JSON."""
  scores = run.evaluate(_load(args), args.flags.checkpoint_step)
  if jax.process_index() == 0:
    console.show(json.dumps(scores))
  return 0


def generate(args: Arguments) -> int:
  """Prints a prompt and what the model makes of it, as it is made."""
  flags = args.flags
  sampling.check_sampling(flags.tokens, flags.temperature, flags.seed)
  config = _load(args)
  # The bytes that were given, whatever the terminal's encoding.
  prompt = os.fsencode(flags.prompt)
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    session = run.session(config, flags.checkpoint_step)
    session.feed(prompt)
    console.write(prompt)
    begun = session.unfinished  # A character, which the prompt has shown.
    for start in range(0, flags.tokens, _AT_A_TIME):
      text = session.generate(
          min(_AT_A_TIME, flags.tokens - start), temperature=flags.temperature,
          seed=flags.seed, stop_at_end=flags.stop_at_end,
      )
      begun = _write_on(text, begun)
      if flags.stop_at_end and session.ended:
        break
    _write_on(session.flush(), begun)
  console.write(b'\n')
  return 0


def _write_on(text: str, begun: bytes) -> bytes:
  """Writes text, without what is there of its first character.

  Returns:
    What is there of the next character.
  """
  written = text.encode()
  if begun and text:
    whole = written.startswith(begun)
    written = written[len(begun) :] if whole else text[1:].encode()
  console.write(written)
  return b'' if text else begun


# Tokens that are shown together.
_AT_A_TIME = 32


def study(args: Arguments) -> int:
  """Runs what is missing of a table of small runs, and prints the table."""
  # Only here: a study draws charts, which no other command needs.
  from hope_jax.studies import runner

  if not args.flags.config:
    raise ConfigError('study needs --config=experiments/NAME.py')
  try:
    return runner.command(
        args.flags.config,
        args.overrides,
        workdir=args.flags.workdir,
        render=args.flags.render,
    )
  except ValueError as error:  # A task says which examples it cannot make.
    raise ConfigError(str(error)) from error
