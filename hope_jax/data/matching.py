"""Which files a path or a glob names: each real file once.

A link is the user's own word, inside a folder of data or leading out of it
(caches and disks are joined that way): it is followed, under its own name, and
one line says how many lead outside. But a file that is reached twice would be
two documents, one of them in training and the other held out, and a folder
that is reached through itself would have no end.
"""

from collections.abc import Iterable, Iterator
import functools
import glob
import os
import pathlib
import stat
import warnings

from hope_jax.config import ConfigError


def match(path: str, taken: set | None = None) -> list[str]:
  """Returns the files that a path or a glob names, sorted, each once.

  Of several paths to a file, the one without a link is taken, else the first.

  Args:
    path: a file, or a glob.
    taken: as in `once`.

  Raises:
    ConfigError: it names none, or a folder.
  """
  if os.path.isdir(path):
    raise ConfigError(
        f'data.path: {path!r} is a folder; give a file, or a glob such as'
        f' {os.path.join(path, "**", "*.txt")!r}'
    )
  # A file may have glob characters in its name; then it is that file.
  found = [path] if os.path.exists(path) else _expand(path)
  root = os.path.realpath(fixed_folder(path))
  links = {p: _is_linked(p, fixed_folder(path), root) for p in found}
  files = once(sorted(links, key=lambda p: (links[p], p)), taken)
  if taken and not files and any(map(os.path.isfile, links)):
    raise ConfigError(
        f'data.mixture: each file of {path!r} belongs to a source named before'
        ' it; leave it out, or name others'
    )
  if not files:
    raise ConfigError(
        f'data.path: no file matches {path!r}; give an existing file, or a glob'
        ' that matches some'
    )
  outside = [
      p for p in files
      if links[p] and not os.path.realpath(p).startswith(os.path.join(root, ''))
  ]
  if outside:
    _say_outside(path, len(outside), len(files), min(outside))
  return sorted(files)


def once(paths: Iterable[str], taken: set | None = None) -> list[str]:
  """Returns the paths of files, the first of each file.

  Args:
    paths: of which some may be of the same file, or of none.
    taken: identities of files that are left out; those returned are added.
  """
  found = {}
  taken = set() if taken is None else taken
  for path in paths:
    try:
      status = os.stat(path)
    except OSError:  # Gone in between, or a link to nothing.
      continue
    file = status.st_dev, status.st_ino
    if stat.S_ISREG(status.st_mode) and file not in taken:
      found[file] = path
      taken.add(file)
  return list(found.values())


def fixed_folder(path: str) -> str:
  """Returns the folder that holds all matches: the part before wildcards."""
  parts = pathlib.PurePath(path).parts[:-1]
  if not os.path.exists(path):
    wild = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    parts = parts[: wild[0]] if wild else parts
  return str(pathlib.PurePath(*parts))


def _is_linked(path: str, folder: str, root: str) -> bool:
  inside = os.path.relpath(path, folder)
  return os.path.realpath(path) != os.path.normpath(os.path.join(root, inside))


@functools.cache
def _say_outside(path: str, count: int, total: int, example: str) -> None:
  warnings.warn(
      f'data.path: of the {total} files of {path!r}, {count} are links that'
      f' lead out of their folder, such as {example!r}; they are read',
      stacklevel=2,
  )


def _expand(pattern: str) -> Iterator[str]:
  """Expands a glob; `**` goes into each real folder once.

  That of Python follows a link to its own folder 40 times over, and two of
  them beyond all time.
  """
  parts = pathlib.PurePath(pattern).parts
  if '**' not in parts:
    yield from glob.iglob(pattern)
    return
  at = parts.index('**')
  rest = parts[at + 1 :] or ('*',)
  for base in glob.iglob(str(pathlib.PurePath(*parts[:at]))) if at else ['']:
    for folder in _folders(base):
      yield from _expand(os.path.join(glob.escape(folder), *rest))


def _folders(base: str) -> Iterator[str]:
  """Yields a folder and those in it, each once; links when all else is done."""
  seen, links = set(), [base]
  while links:
    waiting, links = links, []
    while waiting:
      folder = waiting.pop()
      try:
        status = os.stat(folder or os.curdir)
        if (status.st_dev, status.st_ino) in seen:
          continue
        entries = sorted(os.scandir(folder or os.curdir), key=lambda e: e.name)
      except OSError:  # Not a folder, gone, or not ours to read.
        continue
      seen.add((status.st_dev, status.st_ino))
      yield folder
      for entry in entries:
        # As in a shell, `**` passes over what is hidden.
        if not entry.name.startswith('.') and entry.is_dir():
          inside = os.path.join(folder, entry.name)
          (links if entry.is_symlink() else waiting).append(inside)
