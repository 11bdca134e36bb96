"""A tokenizer's file from elsewhere: read, or refused in one line."""

import json

import pytest

from hope_jax.config import ConfigError
from hope_jax.data.tokenizer import FileTokenizer

tokenizers = pytest.importorskip(
    'tokenizers', reason='the tokenizers library is not installed'
)
models = tokenizers.models


def refused(path):
  """Returns the line that a file is answered with."""
  with pytest.raises(ConfigError) as error:
    FileTokenizer(str(path))
  line = str(error.value)
  assert '\n' not in line and repr(str(path)) in line
  assert line.startswith('data.tokenizer: ')
  return line


def saved(tmp_path, model, edit=lambda spec: None):
  """Saves a tokenizer of a model after edit(its JSON)."""
  spec = json.loads(tokenizers.Tokenizer(model).to_str())
  edit(spec)
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(spec))
  return path


@pytest.mark.parametrize('text', [
    b'', b'null', b'[]', b'"x"', b'3', b'{}', b'{"model": 3}', b'\xff\xfe\0',
    b'[' * 100_000, b'{"a":' * 100_000, b'1' * 10_000, b'{"version": "9.0"}',
    b'{"version": "1.0", "model": {"type": "BPE", "vocab": 3, "merges": 3}}',
    b'{"version": "1.0", "added_tokens": [3], "model": {"type": "None"}}',
    b'cposix\nsystem\n.', b'PK\x03\x04', b'\0' * 100,
])
def test_what_is_no_tokenizer(tmp_path, text):
  """A failure means a traceback for a file that is something else."""
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(text)
  assert 'is not a tokenizer' in refused(path)


def test_what_is_no_file(tmp_path):
  """A failure means a traceback for a mistyped name."""
  for path in (tmp_path, tmp_path / 'none', 'a\0b', '/dev/null'):
    assert 'no file' in refused(path)


@pytest.mark.parametrize('model', [
    lambda: models.BPE({'a': 0, '<s>': 1}, [], unk_token='<unk>'),
    lambda: models.WordLevel({'a': 0, '<s>': 1}, unk_token='<unk>'),
    lambda: models.WordPiece({'a': 0, '<s>': 1}, unk_token='<unk>'),
    lambda: models.Unigram([('a', 0.0), ('<s>', 0.0)], unk_id=None),
], ids=['BPE', 'WordLevel', 'WordPiece', 'Unigram'])
def test_what_it_does_not_know_must_not_stop_it(tmp_path, model):
  """A failure means that a run stops at the first unknown character."""
  assert 'unknown' in refused(saved(tmp_path, model()))


@pytest.mark.parametrize(
    'index', [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**64, -1, 1.5, 'x', None]
)
def test_ids_have_a_range(tmp_path, index):
  """A failure means an OverflowError where a text is encoded."""

  def edit(spec):
    spec['model']['vocab']['z'] = index

  refused(saved(tmp_path, models.BPE({'a': 0, '<s>': 1}, []), edit))


@pytest.mark.parametrize('index', [2**31, 7, 0])
def test_added_tokens_have_the_ids_that_are_used(tmp_path, index):
  """A failure means a token of another id than the file says."""

  def edit(spec):
    spec['added_tokens'].append({
        'id': index, 'content': '<q>', 'single_word': False, 'lstrip': False,
        'rstrip': False, 'normalized': False, 'special': True,
    })

  path = saved(tmp_path, models.BPE({'a': 0, '<s>': 1}, []), edit)
  assert "'<q>'" in refused(path)


@pytest.mark.parametrize('edit', [
    lambda model: model.update(unk_id=99),
    lambda model: model.update(unk_id=-1),
    lambda model: model['vocab'].append(['x']),
    lambda model: model.update(vocab=[]),
    lambda model: model.update(vocab={'a': 1}),
    lambda model: model.update(type='Trigram'),
], ids=['unk_id', 'negative', 'pair', 'empty', 'dict', 'type'])
def test_a_broken_vocabulary(tmp_path, edit):
  """A failure means a traceback for a damaged file."""
  model = models.Unigram([('<unk>', 0.0), ('<s>', 0.0)], unk_id=0)
  refused(saved(tmp_path, model, lambda spec: edit(spec['model'])))


def test_a_file_does_not_speak_to_the_terminal(tmp_path):
  """A failure means that a file can clear the screen, or forge a line."""
  token = '\x1b[2J\nerror: forged\x07\u202e'
  model = models.BPE({'a': 0, '<s>': 1}, [], unk_token=token)
  assert refused(saved(tmp_path, model)).isprintable()
  model = models.BPE({'a': 0, '<s>': 1}, [])
  edit = lambda spec: spec['model']['vocab'].update({token: 2**31})
  assert refused(saved(tmp_path, model, edit)).isprintable()
