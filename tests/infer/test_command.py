"""`generate` from a user's side: bytes in, bytes out, whatever the terminal."""

import io
import sys
import warnings

import pytest

from hope_jax import main as main_lib
from hope_jax import run
from tests.infer import script
from tests.infer.script import LLAMA


@pytest.fixture
def write(monkeypatch):
  """Runs the command on a script: (script, prompt, ...) -> exit code, bytes."""

  def runs(tokens, prompt, *args, encoding='ascii', tokenizer=None):
    # The prompt is in the stream, too.
    session = script.session([*prompt, *tokens], tokenizer)
    monkeypatch.setattr(run, 'session', lambda *_: session)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', out)
    code = main_lib.main([
        'generate', '--config=tiny', f'--tokens={len(tokens)}',
        # As Python gives the bytes of a command line.
        '--prompt=' + prompt.decode('utf-8', 'surrogateescape'), *args,
    ])
    return code, out.buffer.getvalue()

  return runs


@pytest.mark.parametrize('encoding', ['ascii', 'utf-8', 'latin-1', 'utf-16'])
@pytest.mark.parametrize('prompt', [
    b'', b'def ', 'žluť'.encode(), b'caf\xe9', b'\xff\xfe', b'\x80',
    LLAMA.encode()[:3], b'--x=\x1b[0m',
])
def test_any_prompt_on_any_terminal(write, prompt, encoding):
  """If it fails, a prompt ends in a traceback, or is not what was given."""
  code, out = write(list(f' {LLAMA}'.encode() * 9), prompt, encoding=encoding)
  assert code == 0
  assert out == prompt + f' {LLAMA}'.encode() * 9 + b'\n'


@pytest.mark.parametrize(('prompt', 'tokens', 'written'), [
    # The model finishes a character that the prompt begins.
    (LLAMA.encode()[:2], LLAMA.encode()[2:] + b'!', LLAMA.encode() + b'!'),
    # It begins one that is never finished; and one in a row that is none.
    (b'', b'a' + LLAMA.encode()[:3], 'a\ufffd'.encode()),
    (b'', b'\x80\xffz', '\ufffd\ufffdz'.encode()),
    # Nothing is shown twice.
    (LLAMA.encode()[:2], b'\x80', LLAMA.encode()[:2]),
])
def test_characters_are_written_whole(write, prompt, tokens, written):
  """If it fails, a character is shown in pieces, or not at all."""
  assert write(list(tokens), prompt) == (0, written + b'\n')


def test_it_stops_at_the_end(write):
  """If it fails, text goes on behind the end of the document."""
  text, ending = [*b'one', 256, *b'two'], script.Ending()
  assert write(text, b'> ', tokenizer=ending) == (0, b'> one\n')
  code, out = write(text, b'> ', '--nostop_at_end', tokenizer=ending)
  assert (code, out) == (0, b'> onetwo\n')


def test_long_texts_are_one_text(write):
  """If it fails, what is shown as it is written is not what was written."""
  text = f'{LLAMA}a'.encode() * 60  # Five bytes; 32 are shown at once.
  assert write(list(text), b'') == (0, text + b'\n')


@pytest.mark.parametrize('flag', [
    '--temperature=nan', '--temperature=inf', '--temperature=-inf',
    '--temperature=-1', '--temperature=1e-45', '--temperature=1e-300',
    '--temperature=1e400', '--temperature=hot', '--tokens=0', '--tokens=-1',
    '--tokens=2147483648', '--tokens=99999999999999999999', '--tokens=1.5',
    '--seed=-1', '--seed=4294967296', '--seed=99999999999999999999',
    '--seed=x',
])
def test_bad_flags(capsys, flag):
  """If it fails, a number that cannot be used is a traceback, or writes NUL."""
  assert main_lib.main(['generate', '--config=tiny', flag]) == 2
  captured = capsys.readouterr()
  (line,) = captured.err.splitlines()
  assert line.startswith('error: ') and not captured.out
  assert flag[2:].partition('=')[0] in line.replace('max_tokens', 'tokens')


def test_a_notebook_s_stdout(monkeypatch):
  """If it fails, generate needs a terminal of bytes."""
  session = script.session([*b'one'])
  monkeypatch.setattr(run, 'session', lambda *_: session)
  out = io.StringIO()
  monkeypatch.setattr(sys, 'stdout', out)
  assert main_lib.main(['generate', '--config=tiny', '--tokens=3']) == 0
  assert out.getvalue() == 'one\n'


def test_a_terminal_of_few_characters(monkeypatch):
  """If it fails, a table with '±' is a traceback, a warning two lines."""
  out = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  monkeypatch.setattr(sys, 'stdout', out)
  monkeypatch.setattr(warnings, 'formatwarning', None)
  main_lib._set_terminal()
  print('1 ± 2', flush=True)
  assert out.buffer.getvalue() == b'1 \\xb1 2\n'
  text = warnings.formatwarning(UserWarning('told'), UserWarning, 'a.py', 3)
  assert text == 'warning: told\n'
