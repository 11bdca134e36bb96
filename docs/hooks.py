"""What mkdocs builds of the repository besides the pages of docs/.

- READMEs of experiments, benchmarks and kernels become pages, with their
  figures and the JSON files that they link to, under their own paths.
- `<!-- fields: module:class -->` becomes the list of a configuration's fields,
  read from the comments beside them.
- `<!-- architectures -->` and `<!-- optimizers -->` become what the registries
  hold.
"""

import html
import importlib
import pathlib
import re

from mkdocs.structure.files import File

from hope_jax.config import architectures, fields
from hope_jax.optim import registry

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ('experiments/*/*.md', 'benchmarks/README.md',
         'hope_jax/kernels/dgd/README.md')
LINK = re.compile(r'\]\(([^)#\s]+)')


def on_files(files, config):
  """Adds the pages outside docs/ and all that any page links to."""
  wanted = {path for pattern in PAGES for path in ROOT.glob(pattern)}
  for page in (*wanted, *pathlib.Path(config.docs_dir).glob('*.md')):
    for link in LINK.findall(page.read_text(encoding='utf-8')):
      path = (page.parent / link).resolve()
      if path.is_file() and path.suffix in ('.json', '.svg', '.py'):
        wanted.add(path)
  for path in sorted(wanted):
    if not path.is_relative_to(config.docs_dir):
      name = path.relative_to(ROOT).as_posix()
      if path.suffix == '.py':
        # A page of its own for a source file: a site has no repository.
        text = f'# {name}\n\n```python\n{path.read_text(encoding="utf-8")}```\n'
        files.append(File.generated(config, f'{name}.md', content=text))
      else:
        files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Leads links to where `on_files` puts things, and lists fields."""
  del config
  if '/' not in page.file.src_uri:  # A page of docs/, one folder further down.
    markdown = markdown.replace('](../', '](')
  folder = pathlib.PurePosixPath(page.file.src_uri).parent

  def source(match):
    target = (ROOT / folder / match[1]).resolve()
    is_page = target.suffix == '.py' and target.is_relative_to(ROOT) and (
        files.get_file_from_path(f'{target.relative_to(ROOT).as_posix()}.md')
    )
    return f'{match[0]}.md' if is_page else match[0]

  markdown = LINK.sub(source, markdown)
  for name, table in (
      ('architectures', _architectures), ('optimizers', _optimizers)
  ):
    markdown = markdown.replace(f'<!-- {name} -->', table())
  return re.sub(r'<!-- fields: (\S+) -->', _fields, markdown)


def _table(head, rows):
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _codes(words):
  return ', '.join(f'`{word}`' for word in words)


def _architectures():
  rows = [
      (
          f'`{name}`',
          'CMS' if entry.levels else 'SwiGLU MLP',
          _codes(f'{k}={v!r}' for k, v in entry.fixed.items()),
          _codes(entry.reads),
      )
      for name, entry in architectures.ARCHITECTURES.items()
  ]
  return _table(('name', 'after the mixer', 'fixes', 'reads'), rows)


def _optimizers():
  rows = [
      (
          f'`{name}`',
          f'{entry.rate:g}',
          _codes(
              o if p.default is p.empty else f'{o}={_plain(p.default)}'
              for o, p in entry.options.items()
          ),
      )
      for name, entry in registry.OPTIMIZERS.items()
  ]
  return _table(('name', 'usual rate', 'options'), rows)


def _plain(value):
  """A default as it is written; a function by its name."""
  return getattr(value, '__name__', repr(value))


def _fields(match):
  module, _, name = match[1].partition(':')
  kind = getattr(importlib.import_module(module), name)
  return '\n\n'.join(map(_group, fields.groups(kind)))


def _group(group):
  title = f'`{group.path}`' if group.path else 'The configuration'
  lines = [f'## {title}', '', _escaped(group.summary), '']
  for field in group.fields:
    default = f' = {field.default}' if field.default else ''
    within = f' in {_escaped(field.range)}' if field.range else ''
    lines += [f'**`{field.name}: {field.kind}{default}`**{within}', '']
    if field.comment:
      lines += [_escaped(field.comment), '']
  return '\n'.join(lines)


def _escaped(text):
  """Comments are plain text but for `code`: no other markup is one's."""
  parts = html.escape(text, quote=False).split('`')
  parts[::2] = (re.sub(r'([\\*_|\[\]])', r'\\\1', p) for p in parts[::2])
  return '`'.join(parts)
