"""Train, evaluate and use Hope: flags -> configuration -> the thing asked for.

  python -m hope_jax.main quickstart
  python -m hope_jax.main train --config=experiments/tiny.py
  python -m hope_jax.main eval --workdir=runs/tiny
  python -m hope_jax.main generate --workdir=runs/tiny --prompt='def '
  python -m hope_jax.main study --config=experiments/mqar.py:tiny

An experiment file has a function `get_config()` that returns what it changes of
the defaults. It is Python, and it is run, and so is a study's language,
--config.language=FILE.py:NAME: use only files that you trust. The name of an
experiment that comes with hope_jax will do as well: --config=tiny.
Any field can be changed on the command line, after the file, whether the file
mentions it or not:

  --config.model.dim=512 --config.model.continuum.periods=1,4,16
  --config.data.source=files --config.data.path='books/*.txt'
  --config.optimizer.name=m3 --config.optimizer.options.period=10

eval and generate take the configuration from the workdir; they too accept
--config.x=y, such as another text to evaluate on.
"""

import os
import signal

if __name__ == '__main__':
  # Before anything that takes time; in silence, until there is more of us.
  signal.signal(signal.SIGINT, lambda *_: os._exit(130))
  from hope_jax import interrupts

  interrupts.stop_at_once()

from collections.abc import Sequence
import importlib
import io
import sys
import textwrap
from typing import Any, NamedTuple
import warnings

from absl import flags, logging

from hope_jax import console, interrupts
from hope_jax.config import ConfigError, experiment, fields
from hope_jax.config.build import nearest


class Command(NamedTuple):
  """A command, named rather than imported: JAX takes seconds to come up."""

  # 'module:function' of `commands.Arguments` -> exit code.
  function: str
  # The flags that it reads.
  flags: tuple[str, ...]
  help: str
  # 'module:class' of the configuration that --config.x=y changes.
  config: str = 'hope_jax.config:Config'


_STUDY = Command(
    'hope_jax.commands:study',
    ('config', 'workdir', 'render'),
    'Trains what is missing of a table of small runs (rows x columns x seeds),'
    ' a file of results each, and renders the table and the figures. The same'
    ' command again goes on where it stopped. The experiment file, and the file'
    ' of --config.language, are Python and are run: use only files that you'
    ' trust.',
    'hope_jax.config.study:StudyConfig',
)
COMMANDS = {
    'train': Command(
        'hope_jax.commands:train',
        ('config', 'workdir', 'checkpoint_step'),
        'Trains the model of an experiment file. Everything is written to'
        ' --workdir (default: runs/NAME for experiments/NAME.py): config.json,'
        ' checkpoints/, metrics.jsonl and tensorboard/. The same command again'
        ' goes on where it stopped, bit for bit; Ctrl-C, SIGTERM and a terminal'
        ' that hangs up save first. One program at a time writes to a workdir.',
    ),
    'eval': Command(
        'hope_jax.commands:evaluate',
        ('config', 'workdir', 'checkpoint_step'),
        'Bits per byte of held-out text, as a line of JSON.',
    ),
    'generate': Command(
        'hope_jax.commands:generate',
        ('config', 'workdir', 'checkpoint_step', 'prompt', 'tokens',
         'temperature', 'seed', 'stop_at_end'),
        'Continues --prompt, which may be of any bytes; they come out as they'
        ' went in.',
    ),
    'quickstart': Command(
        'hope_jax.commands:quickstart',
        ('config', 'workdir', 'checkpoint_step'),
        'Trains as train does, then reports: held-out bits per byte beside'
        ' n-grams, gzip and xz, a second reading that shows the memory at'
        ' work, a sample. Printed, and written to WORKDIR/report.html and'
        ' report.json. Without --config: experiments/quickstart.py.',
    ),
    'study': _STUDY,
    'sweep': _STUDY._replace(help='Another word for study.'),
}


def _define_flags() -> flags.FlagValues:
  values = flags.FlagValues()

  def define(kind, name, default, text, **bounds):
    kind(name, default, text, flag_values=values, **bounds)

  define(flags.DEFINE_string, 'config', None, 'Experiment file;'
         ' FILE:ARGUMENT calls get_config(ARGUMENT).')
  define(flags.DEFINE_string, 'workdir', None, 'Folder of the run.')
  define(flags.DEFINE_integer, 'checkpoint_step', None, 'Use this checkpoint'
         ' instead of the latest. In training, later ones are moved to'
         ' WORKDIR/set_aside.', lower_bound=0)
  define(flags.DEFINE_string, 'prompt', '', 'The text to continue.')
  define(flags.DEFINE_integer, 'tokens', 256, 'Tokens to write, at most.',
         lower_bound=1)
  define(flags.DEFINE_float, 'temperature', 0.8, '0 takes the likeliest token'
         ' each time.', lower_bound=0.0)
  define(flags.DEFINE_integer, 'seed', 0, 'Another seed, another text.')
  define(flags.DEFINE_boolean, 'stop_at_end', True, 'Stop where the document'
         ' ends, if the tokenizer has a token for it.')
  define(flags.DEFINE_boolean, 'render', False, 'Render the results that there'
         ' are; train nothing.')
  return values


def _resolve(name: str) -> Any:
  """Returns the object of 'module:name'."""
  module, _, attribute = name.partition(':')
  return getattr(importlib.import_module(module), attribute)


def _wrapped(text: str, first: str, rest: str) -> str:
  return textwrap.fill(
      text, 80, initial_indent=first, subsequent_indent=rest,
      break_on_hyphens=False, break_long_words=False,
  )


def _flag_help(command: Command) -> str:
  values = _define_flags()
  lines = [
      _wrapped(
          f'--{name}: {values[name].help} Default: {values[name].default!r}.',
          '  ', '      ',
      )
      for name in command.flags
  ]
  return '\n'.join(lines)


def _help(args: Sequence[str]) -> str:
  """Returns the help of all commands, of one, or of a group of fields."""
  args, group = list(args), None
  for i, arg in enumerate(args):
    flag, equals, group_given = arg.partition('=')
    if flag == '--help_config':
      # A value may follow after a blank, as absl's flags have it.
      if not equals and args[i + 1 :] and not args[i + 1].startswith('-'):
        group_given = args.pop(i + 1)
      group = group_given
      break
  names = [arg for arg in args if arg in COMMANDS]
  command = COMMANDS[names[0]] if names else COMMANDS['train']
  kind = _resolve(command.config)
  if group is not None:
    return fields.as_text(kind, group)
  every = (
      'Fields, as --config.NAME=VALUE; --help_config=GROUP shows one group,'
      ' such as model.titans:'
  )
  if names:
    top = _wrapped(f'{names[0]}: {command.help}', '', '  ')
    parts = [top, f'Flags:\n\n{_flag_help(command)}']
  else:
    listed = [
        _wrapped(f'{name:<11}{c.help}', '  ', ' ' * 13)
        for name, c in COMMANDS.items()
    ]
    parts = [
        (__doc__ or '').rstrip(),
        'Commands; COMMAND --help shows the flags of each:\n\n'
        + '\n'.join(listed),
    ]
  return '\n\n'.join([*parts, _wrapped(every, '', '  '), fields.as_text(kind)])


def _parse(args: Sequence[str]) -> tuple[str, Any, list[tuple[str, str]]]:
  """Returns the command, the values of the flags, and the changed fields."""
  rest, overrides = experiment.split(args)
  values = _define_flags()
  # absl takes the first argument for the name of the program.
  positional = values(['hope_jax.main', *rest])[1:]
  if not positional:
    raise ConfigError(f'a command is wanted, one of {", ".join(COMMANDS)}')
  command, *more = positional
  if command not in COMMANDS:
    hint = nearest(command, COMMANDS, 'there are')
    raise ConfigError(f'no command {command!r}; {hint}')
  if more:
    raise ConfigError(
        f'{command} takes flags only, as --NAME=VALUE; got'
        f' {", ".join(map(repr, more))} as well'
    )
  read = COMMANDS[command].flags
  for name in values:
    if values[name].present and name not in read:
      raise ConfigError(
          f'{command} does not read --{name}; it reads --{", --".join(read)}'
      )
  return command, values, overrides


def _run(args: Sequence[str]) -> int:
  command, values, overrides = _parse(args)
  fault = _resolve('hope_jax.train.failures:lack_of_memory')()
  if fault:
    raise ConfigError(fault)
  commands = importlib.import_module('hope_jax.commands')
  _resolve('hope_jax.train.failures:hide_abandoned_work')()
  arguments = commands.Arguments(values, overrides, args)
  try:
    return _resolve(COMMANDS[command].function)(arguments)
  except KeyboardInterrupt:
    console.say('stopped without saving; to go on from the last checkpoint:\n'
                f'  {commands.again(args)}')
    return 130


def main(args: Sequence[str]) -> int:
  """Runs one command.

  Args:
    args: the command line, without the program.

  Returns:
    The exit code: 0 done, or stopped by train.max_seconds; 1 the numbers are
    not finite; 2 something the user can put right, said in one line on stderr;
    129, 130 or 143 stopped by SIGHUP, Ctrl-C or SIGTERM, after saving; 141
    nobody reads the output any more.
  """
  if list(args) == sys.argv[1:]:  # The process is this command, and no more.
    console.open_closed()
    interrupts.stop_at_once()
  # Storage libraries report what is handled here, in many lines.
  logging.set_verbosity(logging.ERROR)
  helping = ('-h', '--help', '--helpfull', '--help_config')
  try:
    if not args or any(arg.partition('=')[0] in helping for arg in args):
      console.show(_help(args))
      return 0
    return _run(args)
  except (ConfigError, flags.Error) as error:
    fault, code = str(error), 2
  except FloatingPointError as error:
    fault, code = str(error), 1
  except BrokenPipeError:  # `--help | head`: nobody reads on.
    return 128 + signal.SIGPIPE
  except Exception as error:
    fault, code = _resolve('hope_jax.train.failures:of_machine')(error), 2
    if not fault:
      raise
  console.say(f'error: {" ".join(fault.split())}')
  return code


def _set_terminal() -> None:
  """Shows what the terminal has no character for, and warnings as a line."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\n'


if __name__ == '__main__':
  _set_terminal()
  code = main(sys.argv[1:])
  # The answer stands. While Python takes itself down, Ctrl-C is the system's
  # again, and would change the exit code to its own.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  sys.exit(code)
