"""Every code block of the README and of the site runs.

Python blocks run as they are written. Command lines run in the order of their
page, through `main`, on a text and at sizes that take seconds and with the
stand-in for a model; a study renders instead of training for hours.
"""

import pathlib
import re
import shlex

import jax
import pytest

from hope_jax import main as main_lib
from hope_jax.config.architectures import ARCHITECTURES
from hope_jax.kernels.dgd.implementations import IMPLEMENTATIONS
from hope_jax.models import factory
from hope_jax.optim.registry import OPTIMIZERS
from hope_jax.studies.grid import TASKS
from tests import standin

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/*.md', 'experiments/*/README.md',
                    'benchmarks/README.md', 'hope_jax/kernels/dgd/README.md')
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r'^ *(?:python|"\$PYTHON") -m hope_jax\.main(.*)$',
                     re.MULTILINE)

# What a block of commands may hold besides those of `main`, and what runs it.
ELSEWHERE = {
    'launch/local.sh': 'installs; tests/test_packaging.py installs and runs',
    'tests/run.sh': 'runs this very test',
    'pip install ': 'tests/test_packaging.py does it',
    'python -m mkdocs build': 'tests/docs/test_site.py does it',
}
# Appended to the commands that train.
SMALL = (
    '--config.data.source=files', '--config.data.holdout=0.2',
    '--config.data.sequence_length=32', '--config.train.steps=2',
    '--config.train.log_every=1', '--config.train.eval_batches=1',
    '--config.optimizer.warmup_steps=1',
)


@pytest.fixture(autouse=True)
def tables():
  """Takes out again what a block registers."""
  kept = [(t, dict(t)) for t in (
      ARCHITECTURES, IMPLEMENTATIONS, OPTIMIZERS, TASKS)]
  yield
  for table, entries in kept:
    table.clear()
    table.update(entries)


def blocks(path):
  """Returns (language, text) of the fenced blocks of a page."""
  return FENCED.findall(path.read_text(encoding='utf-8'))


def commands(path):
  """Returns the arguments of each command line of a page, fenced or not."""
  text = re.sub(r' *\\\n *', ' ', path.read_text(encoding='utf-8'))
  lines = [line.partition('  #')[0] for line in COMMAND.findall(text)]
  return list(map(shlex.split, lines))


def named(path):
  return path.relative_to(ROOT).as_posix()


PYTHON = {
    f'{named(page)}-{i}': text
    for page in PAGES
    for i, (language, text) in enumerate(blocks(page))
    if language == 'python'
}


def trains(text):
  """Whether a block compiles a whole Hope, which takes about a minute."""
  return 'hope_jax.train(' in text


def run_block(text):
  exec(compile(text, 'a block of the documentation', 'exec'), {})


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(n, marks=[pytest.mark.slow] if trains(text) else [])
        for n, text in PYTHON.items()
    ],
)
def test_python_block(name, tmp_path, monkeypatch):
  """If it fails, what a reader copies first does not work."""
  monkeypatch.chdir(tmp_path)
  run_block(PYTHON[name])


@pytest.mark.parametrize('name', [n for n, t in PYTHON.items() if trains(t)])
def test_python_block_with_the_standin(name, tmp_path, monkeypatch):
  """If it fails, the same; here the slow ones run in a second or two."""
  monkeypatch.setattr(factory, 'language_model', standin.Standin)
  monkeypatch.chdir(tmp_path)
  run_block(PYTHON[name])


def test_the_task_of_the_docs_is_studied(tmp_path, monkeypatch, capsys):
  """If it fails, a task that is written as the page says cannot be run."""
  monkeypatch.setattr(factory, 'language_model', standin.Standin)
  monkeypatch.chdir(tmp_path)
  task, experiment = (
      text for text in PYTHON.values()
      if "grid.TASKS['first']" in text or "'task': 'first'" in text
  )
  run_block(task)
  (tmp_path / 'first.py').write_text(experiment)
  small = ['--config.base.train.steps=2', '--config.base.optimizer.warmup_steps'
           '=1', '--config.base.train.log_every=1']
  assert main_lib.main(['study', '--config=first.py', *small]) == 0
  assert '| DeltaNet |' in capsys.readouterr().out
  assert len(list((tmp_path / 'runs' / 'first').glob('*.json'))) == 2


@pytest.mark.parametrize(
    'page', [p for p in PAGES if commands(p)], ids=named
)
def test_commands(page, tmp_path, monkeypatch, capsys):
  """If it fails, a command that a page tells of ends in an error."""
  monkeypatch.setattr(factory, 'language_model', standin.Standin)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'texts').mkdir()
  for i in range(40):
    text = f'text number {i:02} of a corpus. ' * 34
    (tmp_path / 'texts' / f'{i}.txt').write_text(text)
  for args in commands(page):
    if {'train', 'quickstart'} & set(args) and '--help' not in args:
      args += [*SMALL, f'--config.data.path={tmp_path}/texts/*.txt']
    if {'study', 'sweep'} & set(args) and '--help' not in args:
      args += ['--render', f'--config.results={tmp_path}/results']
    code = main_lib.main(args)
    assert code == 0, f'{shlex.join(args)}\n{capsys.readouterr().err}'
  jax.clear_caches()  # The stand-in's programs are of no use to others.


def test_nothing_is_left_out():
  """If it fails, a block of commands or of Python is run by nothing."""
  for page in PAGES:
    for language, text in blocks(page):
      assert language in ('python', 'bash', 'text'), (named(page), language)
      lines = re.sub(r' *\\\n *', ' ', text).splitlines()
      for line in lines if language == 'bash' else ():
        known = COMMAND.match(line) or line.startswith(tuple(ELSEWHERE))
        assert known or not line.strip() or line.startswith('#'), line
