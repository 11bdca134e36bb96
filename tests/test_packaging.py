"""What a stranger installs: wheel, source distribution, and one version."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import hope_jax

ROOT = pathlib.Path(__file__).parents[1]


def run(args, cwd, **environment):
  """Runs Python with the arguments; returns what it printed."""
  done = subprocess.run(
      [sys.executable, *map(str, args)], cwd=cwd, text=True, check=False,
      capture_output=True, env=os.environ | environment,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
  """Returns the wheel and the source distribution, of a copy of the code."""
  source = tmp_path_factory.mktemp('source') / 'hope_jax'
  shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
      '.*', 'runs', 'results', 'build', 'dist', '*.egg-info', '__pycache__',
      'site',
  ))
  output = tmp_path_factory.mktemp('dist')
  # The wheel is made of the source distribution, which so proves complete. In
  # this environment: a test asks no network for setuptools.
  run(['-m', 'build', '--no-isolation', '--outdir', output, source], source)
  (wheel,) = output.glob('*.whl')
  (sdist,) = output.glob('*.tar.gz')
  return wheel, sdist


@pytest.fixture(scope='module')
def installed(distributions, tmp_path_factory):
  """Returns a folder that holds the package alone."""
  site = tmp_path_factory.mktemp('site')
  run(['-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index',
       '--target', site, distributions[0]], site)
  return site


def test_one_version():
  """If it fails, two places claim different versions of the same code."""
  version = hope_jax.__version__
  assert importlib.metadata.version('hope_jax') == version
  citation = (ROOT / 'CITATION.cff').read_text()
  assert re.search(r'^version: (.+)$', citation, re.MULTILINE)[1] == version
  changes = (ROOT / 'CHANGELOG.md').read_text()
  assert re.search(r'^## (\S+)', changes, re.MULTILINE)[1] == version


def test_contents(distributions):
  """If it fails, an installed package lacks types or experiments."""
  wheel, sdist = distributions
  names = zipfile.ZipFile(wheel).namelist()
  for name in ('py.typed', 'experiments/quickstart.py', 'main.py',
               'experiments/optimizers/digits.py', 'kernels/dgd/api.py'):
    assert f'hope_jax/{name}' in names
  assert not [n for n in names if n.startswith(('tests/', 'experiments/'))]
  names = [n.partition('/')[2] for n in tarfile.open(sdist).getnames()]
  for name in ('setup.py', 'LICENSE', 'CITATION.cff', 'experiments/tiny.py'):
    assert name in names


def test_experiments_without_the_repository(installed, tmp_path):
  """If it fails, an installed package has nothing to run."""
  code = (
      'import hope_jax; print(hope_jax.__file__);'
      "print(hope_jax.load('quickstart').workdir)"
  )
  file, workdir = run(
      ['-c', code], tmp_path, PYTHONPATH=str(installed)
  ).split()
  assert pathlib.Path(file).is_relative_to(installed)
  assert workdir == 'runs/quickstart'


@pytest.mark.slow  # Compiles a Hope, its second reading and its sampling.
def test_quickstart_without_the_repository(installed, tmp_path):
  """If it fails, what a stranger types first does not end in a report."""
  (tmp_path / 'texts').mkdir()
  for i in range(40):
    text = f'text number {i:02} of a corpus. ' * 34
    (tmp_path / 'texts' / f'{i}.txt').write_text(text)
  run(
      ['-m', 'hope_jax.main', 'quickstart', '--config.data.source=files',
       '--config.data.path=texts/*.txt', '--config.data.holdout=0.2',
       '--config.data.sequence_length=64', '--config.model.dim=32',
       '--config.model.layers=1', '--config.train.steps=2',
       '--config.train.eval_batches=1', '--config.optimizer.warmup_steps=1'],
      tmp_path, PYTHONPATH=str(installed),
  )
  report = json.loads((tmp_path / 'runs/quickstart/report.json').read_text())
  assert report['training']['step'] == 2
  assert (tmp_path / 'runs/quickstart/report.html').is_file()
