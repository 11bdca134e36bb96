"""Where a number comes from."""

import subprocess

from hope_jax.studies import machine


def test_a_number_says_where_it_comes_from(tmp_path, monkeypatch):
  """If it fails, nobody can tell which code or machine made a result."""
  facts = machine.describe()
  for name in ('device', 'processor', 'system', 'python', 'jax', 'optax'):
    assert facts[name]
  folder = tmp_path / 'hope_jax' / 'studies'
  folder.mkdir(parents=True)
  monkeypatch.setattr(machine, '__file__', str(folder / 'machine.py'))
  assert 'commit' not in machine.describe()
  git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b']
  for command in (
      ['init', '-q'], ['commit', '-q', '--allow-empty', '-m', 'first'],
  ):
    subprocess.run([*git, *command], check=True)
  commit = machine.describe()['commit']
  assert len(commit) >= 7 and not commit.endswith('+')
  # What is not in the commit is said, too.
  (tmp_path / 'new').write_text('')
  subprocess.run([*git, 'add', 'new'], check=True)
  assert machine.describe()['commit'] == f'{commit}+'
