"""Train, evaluate and use Hope: flags -> configuration -> the thing asked for.

  python -m hope_jax.main quickstart --config=experiments/quickstart.py
  python -m hope_jax.main train --config=experiments/tiny.py
  python -m hope_jax.main eval --workdir=runs/tiny
  python -m hope_jax.main generate --workdir=runs/tiny --prompt='def '

quickstart trains as `train` does, then reports: held-out bits per byte beside
          n-grams, gzip and xz, a second reading that shows the memory at
          work, a sample. Printed, and written to WORKDIR/report.html and
          report.json. The same command again goes on where it stopped.
train     trains the model of an experiment file. Everything is written to
          --workdir (default: runs/NAME for experiments/NAME.py): config.json,
          checkpoints/, metrics.jsonl and tensorboard/. The same command again
          goes on where it stopped, bit for bit; Ctrl-C saves first.
eval      bits per byte of held-out text, as a line of JSON.
generate  continues --prompt.

An experiment file has a function `get_config()` that returns what it changes of
the defaults; hope_jax/config/ lists every field with its meaning. Any field
can be changed on the command line, after the file:

  --config.model.dim=512 --config.model.continuum.periods=1,4,16
  --config.data.source=files --config.data.path='books/*.txt'

eval and generate take the configuration from the workdir; they too accept
--config.x=y, such as another text to evaluate on.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import shlex
import sys
import textwrap

from absl import flags, logging
import jax

from hope_jax import config as config_lib
from hope_jax import quickstart, sharding
from hope_jax.config import Config, ConfigError
from hope_jax.config import experiment as experiment_lib
from hope_jax.data import pipeline
from hope_jax.data import tokenizer as tokenizer_lib
from hope_jax.evals import language
from hope_jax.infer import session as session_lib
from hope_jax.models.factory import language_model
from hope_jax.train import checkpoint as checkpoint_lib
from hope_jax.train import failures, loop
from hope_jax.train import state as state_lib

COMMANDS = ('quickstart', 'train', 'eval', 'generate')


def _define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string(
      'config', None, 'Experiment file; FILE:ARGUMENT calls'
      ' get_config(ARGUMENT).', flag_values=values,
  )
  flags.DEFINE_string(
      'workdir', None, 'Folder of the run.', flag_values=values
  )
  flags.DEFINE_integer(
      'checkpoint_step', None, 'Use this checkpoint instead of the latest. In'
      ' training, later ones are moved to WORKDIR/set_aside.',
      lower_bound=0, flag_values=values,
  )
  flags.DEFINE_string(
      'prompt', '', 'generate: the text to continue.', flag_values=values
  )
  flags.DEFINE_integer(
      'tokens', 256, 'generate: tokens to write.',
      lower_bound=1, flag_values=values,
  )
  flags.DEFINE_float(
      'temperature', 0.8, 'generate: 0 takes the likeliest token each time.',
      lower_bound=0.0, flag_values=values,
  )
  flags.DEFINE_integer(
      'seed', 0, 'generate: another seed, another text.', flag_values=values
  )
  return values


def _help() -> str:
  values = _define_flags()
  lines = []
  for name in values:
    flag = values[name]
    text = f'--{name}: {flag.help} Default: {flag.default!r}.'
    lines += textwrap.wrap(
        text, 80, initial_indent='  ', subsequent_indent='      '
    )
  return f'{__doc__}\nFlags:\n\n' + '\n'.join(lines)


def load_config(
    experiment: str | None,
    workdir: str | None,
    overrides: Sequence[tuple[str, str]] = (),
) -> Config:
  """Builds the configuration of a command.

  Args:
    experiment: path of an experiment file; None: the config of the workdir.
    workdir: folder of the run; None: what the experiment says, else runs/NAME.
    overrides: dotted field names and the texts of their values.

  Raises:
    ConfigError: neither is given, or something in them is wrong.
  """
  if experiment:
    values = experiment_lib.load(experiment)
  elif workdir:
    values = config_lib.to_dict(checkpoint_lib.load_config(workdir))
  else:
    raise ConfigError('give --config=experiments/NAME.py or --workdir=FOLDER')
  experiment_lib.override(values, overrides, Config)
  if workdir:
    values['workdir'] = workdir
  config = config_lib.from_dict(values)
  if not config.workdir:
    name, _ = os.path.splitext(os.path.basename(experiment.partition(':')[0]))
    config = dataclasses.replace(config, workdir=os.path.join('runs', name))
  needed = tokenizer_lib.vocab_size(config.data)
  if config.model.vocab_size < needed:
    raise ConfigError(
        f'model.vocab_size is {config.model.vocab_size}, but the tokenizer has'
        f' {needed} ids; add --config.model.vocab_size={needed}'
    )
  return config


def _train(config: Config, checkpoint_step: int | None) -> str:
  """Trains; returns why it stopped."""
  model = language_model(config.model)
  batches = pipeline.train_batches(
      config.data,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
  )

  def evaluate(params):
    heldout = pipeline.heldout_batches(
        config.data,
        config.train.eval_batches,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return language.evaluate(model, params, heldout)

  result = loop.train(
      model,
      batches,
      config,
      evaluate=evaluate,
      checkpoint_step=checkpoint_step,
  )
  print(f'step {int(result.state.step)} of {config.train.steps}; everything is'
        f' in {config.workdir}', file=sys.stderr)
  return result.stopped


def _restore(config: Config, checkpoint_step: int | None):
  """Returns the model of a workdir, its trained parameters and the mesh."""
  checkpoint_lib.require_same(
      config, may_change=lambda field: not field.startswith('model.')
  )
  model = language_model(config.model)
  mesh = sharding.make_mesh(config.mesh)
  shapes = state_lib.param_shapes(model, config.data.sequence_length, mesh)
  checkpoints = checkpoint_lib.Checkpoints(config)
  try:
    return model, checkpoints.restore_params(shapes, checkpoint_step), mesh
  finally:
    checkpoints.close()


def _evaluate(config: Config, checkpoint_step: int | None) -> None:
  model, params, mesh = _restore(config, checkpoint_step)
  batches = pipeline.heldout_batches(config.data, config.train.eval_batches)
  with jax.set_mesh(mesh):
    print(json.dumps(language.evaluate(model, params, batches)))


def _generate(config: Config, values: flags.FlagValues) -> None:
  model, params, mesh = _restore(config, values.checkpoint_step)
  tokenizer = tokenizer_lib.load_tokenizer(config.data)
  with jax.set_mesh(mesh):
    session = session_lib.Session(model, params, tokenizer)
    session.feed(values.prompt)
    written = session.generate(
        values.tokens, temperature=values.temperature, seed=values.seed
    )
  print(values.prompt + written)


def _again(args: Sequence[str]) -> str:
  """Returns the command line that goes on with a run."""
  kept, args = [], list(args)
  while args:
    arg = args.pop(0)
    if arg == '--checkpoint_step':
      args.pop(0)
    elif not arg.startswith('--checkpoint_step='):
      kept.append(arg)
  return shlex.join([sys.executable, '-m', 'hope_jax.main', *kept])


def _run(args: Sequence[str]) -> int:
  rest, overrides = experiment_lib.split(args)
  values = _define_flags()
  # absl takes the first argument for the name of the program.
  positional = values(['hope_jax.main', *rest])[1:]
  if len(positional) != 1 or positional[0] not in COMMANDS:
    given = ' '.join(positional) or 'nothing'
    raise ConfigError(
        f'one of {", ".join(COMMANDS)} is wanted; got {given}; see --help'
    )
  (command,) = positional
  config = load_config(values.config, values.workdir, overrides)
  if command == 'eval':
    _evaluate(config, values.checkpoint_step)
  elif command == 'generate':
    _generate(config, values)
  else:
    if command == 'quickstart':
      results = quickstart.run(config, checkpoint_step=values.checkpoint_step)
      stopped = results['training']['stopped']
    else:
      stopped = _train(config, values.checkpoint_step)
    if stopped != 'done':
      print(f'stopped ({stopped}) and saved; to go on:\n  {_again(args)}',
            file=sys.stderr)
    return {'SIGINT': 130, 'SIGTERM': 143}.get(stopped, 0)
  return 0


def main(args: Sequence[str]) -> int:
  """Runs one command.

  Args:
    args: the command line, without the program.

  Returns:
    The exit code: 0 done, or stopped by train.max_seconds; 1 the loss is not
    finite; 2 something the user can put right, said in one line on stderr; 130
    or 143 stopped by Ctrl-C or SIGTERM, after saving.
  """
  if not args or any(arg in ('-h', '--help', '--helpfull') for arg in args):
    print(_help())
    return 0
  # Storage libraries report what is handled here, in many lines.
  logging.set_verbosity(logging.ERROR)
  failures.hide_abandoned_work()
  try:
    return _run(args)
  except (ConfigError, flags.Error) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f'stopped without saving; to go on from the last checkpoint:\n'
          f'  {_again(args)}', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
