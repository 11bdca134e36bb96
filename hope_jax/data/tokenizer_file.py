"""Opens a `tokenizer.json`, which is data from elsewhere and not trusted.

What such a file may switch on, and a text must not lose, is switched off and
said: truncation and padding to a length, and dropout, which gives one text
other ids each time.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import pathlib
from typing import Any, NamedTuple
import warnings

from hope_jax.config import ConfigError
from hope_jax.config.build import first_line

# Ids are int32, and so is their number.
_MOST_IDS = 2**31 - 1
# Characters that no vocabulary has a token for: one unassigned, one private.
_UNKNOWN = '\u0378 \U0010fffd'
# How much less likely than any other a control token is made, see `_as_text`.
_LESS = 1000


class Opened(NamedTuple):
  """A tokenizer of the library, and what its file says."""

  tokenizer: Any  # tokenizers.Tokenizer
  spec: dict[str, Any]
  vocabulary: dict[str, int]
  controls: frozenset[int]  # ids of control tokens, but the one for the unknown
  unknown: int | None  # the id of what the vocabulary does not know
  digest: str  # SHA-256 of the file


@contextlib.contextmanager
def guarded(path: str, doing: str) -> Iterator[None]:
  """Turns what the library raises into one line.

  Raises:
    ConfigError: f'data.tokenizer: {path!r} {doing} ({reason})'.
  """
  try:
    yield
  except (ConfigError, GeneratorExit, KeyboardInterrupt, SystemExit):
    raise
  # The library raises bare Exception; a panic of its Rust is a BaseException.
  except BaseException as error:
    raise ConfigError(
        f'data.tokenizer: {path!r} {doing} ({first_line(error)})'
    ) from error


def open_file(path: str, control_tokens: str) -> Opened:
  """Reads and checks the file.

  Args:
    path: a `tokenizer.json`.
    control_tokens: 'text' or 'parse', see `DataConfig`.

  Raises:
    ConfigError: there is no such file, it is not a tokenizer, or its ids are
      none.
  """
  file = pathlib.Path(path)
  if '\0' in path or not file.is_file():
    raise ConfigError(
        f'data.tokenizer: no file {path!r}; give a tokenizer.json of the'
        " tokenizers library, or '' for bytes"
    )
  try:
    # Imported here: bytes need no such library.
    import tokenizers
  except ImportError as error:
    raise ConfigError(
        f'data.tokenizer: {path!r} needs the tokenizers library ({error});'
        " install the extra hope_jax[datasets], or set '' for bytes"
    ) from error
  wanted = "is not a tokenizer.json of the tokenizers library; '' is for bytes"
  with guarded(path, wanted):
    data = file.read_bytes()
    spec = json.loads(data)
    if not isinstance(spec, dict):
      raise ValueError(f'a JSON {type(spec).__name__}')
    said = _switch_off(spec)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    if control_tokens == 'text':
      if _as_text(spec):
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
      tokenizer.encode_special_tokens = True
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  if max(vocabulary.values(), default=0) >= _MOST_IDS:
    token, most = max(vocabulary.items(), key=lambda item: item[1])
    raise ConfigError(
        f'data.tokenizer: {path!r} gives {token!r} the id {most}; ids have to'
        f' be below {_MOST_IDS}'
    )
  for token in spec.get('added_tokens') or []:
    text, given = token['content'], token['id']
    if vocabulary.get(text) != given:
      raise ConfigError(
          f'data.tokenizer: {path!r} gives {text!r} the id {given}, which is'
          f' {vocabulary.get(text)} to the tokenizers library; give ids without'
          ' gaps, each once'
      )
  for what in said:
    say(f'data.tokenizer: {path!r}: {what} is switched off')
  unknown = vocabulary.get(_unknown(spec['model']) or '')
  controls = {vocabulary[text] for text in _specials(spec)} - {unknown}
  return Opened(
      tokenizer, spec, vocabulary, frozenset(controls), unknown,
      hashlib.sha256(data).hexdigest(),
  )


def require_all_text(path: str, opened: Opened) -> None:
  """Raises a ConfigError where some text stops the tokenizer."""
  with guarded(path, 'cannot read every text; give it a token for the unknown'):
    opened.tokenizer.encode(_UNKNOWN, add_special_tokens=False)


_SAID = set()


def say(message: str, about: Any = None) -> None:
  """Warns once of what a user should know and may leave.

  Args:
    message: one line.
    about: what is warned of, once; None: the message.
  """
  about = message if about is None else about
  if about not in _SAID:
    _SAID.add(about)
    warnings.warn(message, stacklevel=3)


def _switch_off(spec: dict[str, Any]) -> list[str]:
  """Switches off what loses text or repeats nothing; returns what there was."""
  said = []
  for name in ('truncation', 'padding'):
    if spec.get(name) is not None:
      said.append(f'{name}, saved in the file,')
      spec[name] = None
  model = spec.get('model')
  if isinstance(model, dict) and model.get('dropout'):
    said.append(f'dropout of {model["dropout"]!r}, saved in the file,')
    model['dropout'] = None
  return said


def _specials(spec: dict[str, Any]) -> set[str]:
  return {
      token['content']
      for token in spec.get('added_tokens') or []
      if token.get('special')
  }


def _unknown(model: dict[str, Any]) -> str | None:
  """Returns the token for what a vocabulary does not know."""
  index = model.get('unk_id')
  if model.get('type') == 'Unigram' and index is not None:
    return model['vocab'][index][0]
  return model.get('unk_token')


def _as_text(spec: dict[str, Any]) -> bool:
  """Keeps a Unigram model from reading '</s>' as one token of its vocabulary.

  The library leaves control tokens to the model, if it is told that they are
  text, and this one has them among its pieces, the likeliest of all. They are
  made less likely than their characters one by one.

  Returns:
    Whether anything was changed.
  """
  model = spec['model']
  specials = _specials(spec)
  if model.get('type') != 'Unigram' or not specials:
    return False
  lowest = min(score for _, score in model['vocab'])
  model['vocab'] = [
      [piece, lowest - _LESS if piece in specials else score]
      for piece, score in model['vocab']
  ]
  return True
