"""Globs: what they match, and each real file once."""

import glob
import os

import pytest

from hope_jax import data
from hope_jax.config import ConfigError, DataConfig
from hope_jax.data import matching, sources

FILES = ('a.txt', 's/b.txt', 's/t/c.txt', '.h/x.txt', 's/[1].txt', 's/t/d.md')


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'data'
  for name in FILES:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  return root


def _names(path):
  source = sources.open_source(DataConfig(source='files', path=str(path)))
  return [source.name(i) for i in range(len(source))]


@pytest.mark.parametrize('pattern', [
    '**/*.txt', '**', 's/**/*.txt', '*/**/*.txt', '**/t/*.txt', '*.txt',
    '**/s/**/*.txt', '**/[a-b].txt', '**/**/*.txt', 's/**', '?/*/*', '**/*.m*',
])
def test_globs_are_those_of_python(folder, monkeypatch, pattern):
  """A failure means that a corpus without links is another than it was."""
  for wanted in (str(folder / pattern), pattern):
    monkeypatch.chdir(folder)
    found = {
        os.path.normpath(p) for p in glob.glob(wanted, recursive=True)
        if os.path.isfile(p)
    }
    assert matching.match(wanted) == sorted(found)


def test_links_to_a_folder_of_their_own(folder):
  """A failure means documents many times over, or a search without end.

  Two such links are 2^40 paths to a file.
  """
  plain = _names(folder / '**' / '*.txt')
  os.symlink('.', folder / 'again')
  os.symlink('..', folder / 's' / 'up')
  os.symlink(folder, folder / 's' / 't' / 'whole')
  os.symlink('nowhere', folder / 'dead.txt')
  assert _names(folder / '**' / '*.txt') == plain
  assert len(plain) == 4
  # Through a link alone, under its name.
  assert _names(folder / 'again' / 's' / 'up' / '*.txt') == ['a.txt']


def test_two_paths_to_a_file_are_one_document(folder):
  """A failure means that held-out text is trained on under another name."""
  os.symlink('s/b.txt', folder / 'B.txt')
  os.symlink('s', folder / '0')  # sorts before what it leads to
  os.link(folder / 'a.txt', folder / 'copy.txt')
  assert _names(folder / '**' / '*.txt') == [
      'a.txt', 's/[1].txt', 's/b.txt', 's/t/c.txt'
  ]


def test_links_out_of_the_folder_are_told(folder, tmp_path):
  """A failure means that a planted link is read and nobody knows."""
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'far.txt').write_text('far')
  os.symlink(other, folder / 'disk')
  os.symlink(other / 'far.txt', folder / 'one.txt')
  os.symlink('a.txt', folder / 'inside.txt')
  with pytest.warns(UserWarning, match='lead out') as said:
    names = _names(folder / '**' / '*.txt')
  # The first of two names; the file is there once.
  assert 'disk/far.txt' in names and 'one.txt' not in names
  assert 'inside.txt' not in names
  (line,) = [str(warning.message) for warning in said]
  assert '1 are links' in line and 'far.txt' in line


def test_files_that_two_sources_name(folder):
  """A failure means that a text held out of one source is trained on elsewhere.
  """
  a, b = str(folder / '**' / '*.txt'), str(folder / 's' / '*.txt')
  both = DataConfig(mixture=(f'{b}=1', f'{a}=1'), sequence_length=4)
  one, other = sources.open_parts(both)
  named = lambda part: {
      s.name(i) for s in (part.train, part.heldout) for i in range(len(s))
  }
  assert named(one) == {'b.txt', '[1].txt'}
  assert named(other) == {'a.txt', 's/t/c.txt'}
  with pytest.raises(ConfigError, match='named before') as caught:
    data.train_batches(
        DataConfig(mixture=(f'{a}=1', f'{b}=1'), sequence_length=4)
    )
  assert '\n' not in str(caught.value) and repr(b) in str(caught.value)
