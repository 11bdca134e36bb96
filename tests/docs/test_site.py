"""The site is built, without a warning, from Markdown and docstrings."""

import html
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from hope_jax.config import Config, architectures, fields
from hope_jax.optim import registry

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """Returns the folder of the built site."""
  folder = tmp_path_factory.mktemp('site')
  done = subprocess.run(
      [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir',
       folder],
      cwd=ROOT, capture_output=True, text=True, check=False,
      env=os.environ | {'PYTHONPATH': str(ROOT), 'NO_MKDOCS_2_WARNING': '1'},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


def text_of(page):
  return html.unescape(re.sub('<[^>]+>', '', page.read_text()))


def test_pages(site):
  """If it fails, a page is missing, or a link or docstring is broken."""
  for name in ('index', 'concepts/index', 'extend/index', 'api/index',
               'hope_jax/kernels/dgd/index', 'experiments/mqar/index'):
    assert (site / f'{name}.html').is_file()
  assert (site / 'experiments/mqar/results/pairs.svg').is_file()
  api = text_of(site / 'api/index.html')
  for name in ('dgd_recurrence(', 'm3(', 'Trains the model of a configuration'):
    assert name in api


def test_every_field_has_its_comment(site):
  """If it fails, the reference of the configuration is not the code's."""
  text = ' '.join(text_of(site / 'config/index.html').split())
  for group in fields.groups(Config):
    assert ' '.join(group.summary.split()) in text
    for field in group.fields:
      assert f'{field.name}: {field.kind}' in text
      comment = field.comment.replace('`', '')
      assert ' '.join(comment.split()) in text


def test_the_registries_are_listed(site):
  """If it fails, the page names other architectures than there are."""
  page = (site / 'config/index.html').read_text()
  for name in (*architectures.ARCHITECTURES, *registry.OPTIMIZERS):
    assert f'<td><code>{name}</code></td>' in page
  assert '<code>titans.dgd=False</code>' in page


def test_paths_exist():
  """If it fails, the table of equations leads to files that are not there."""
  text = (ROOT / 'docs' / 'equations.md').read_text()
  text += (ROOT / 'docs' / 'optimizers.md').read_text()
  names = re.findall(r'`([a-z_]+/[\w/]*(?:\.py)?)`', text)
  assert len(names) > 20
  for name in names:
    path = ROOT / ('' if name.startswith('tests/') else 'hope_jax') / name
    assert path.exists() or path.with_suffix('.py').exists(), name


def test_nothing_is_fetched(site):
  """If it fails, reading the site offline shows less, and tells others."""
  for page in site.rglob('*.html'):
    fetched = re.findall(
        r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)',
        page.read_text(),
    )
    assert not [url for url in fetched if 'rel="canonical"' not in url]


def test_the_picture_is_of_the_committed_results(tmp_path):
  """If it fails, the README shows numbers that no results file holds."""
  path = tmp_path / 'memory.svg'
  subprocess.run(
      [sys.executable, ROOT / 'docs' / 'draw.py', path], check=True,
      env=os.environ | {'MPLBACKEND': 'svg'},
  )
  found, committed = (
      re.findall('<text[^>]*>([^<]*)</text>', file.read_text())
      for file in (path, ROOT / 'docs' / 'memory.svg')
  )
  assert found == committed and 'gzip -9 1.91' in found


def test_the_measures_agree():
  """If it fails, picture, README and results say other numbers of one model."""
  picture, readme, results = (
      (ROOT / name).read_text()
      for name in ('docs/memory.svg', 'README.md', 'docs/results.md')
  )
  for form, name in (('hour', 'printed layer'), ('five_minutes', 'Hope')):
    path = ROOT / 'experiments' / 'results' / f'quickstart_{form}.json'
    found = json.loads(path.read_text())
    bits = found['heldout']['bits_per_byte']
    minutes = round(found['seconds']['total'] / 60)
    assert f'{name}, {minutes} minutes: {bits:.2f}<' in picture
    assert f'{bits:.2f} in' in readme
    assert f'| **{bits:.3f}** |' in results
