"""A living memory: read, asked, written on, forgotten; in any pieces."""

import jax
import numpy as np
import pytest

from hope_jax.config import ConfigError
from hope_jax.data.tokenizer import ByteTokenizer
from hope_jax.infer import session as session_lib
from tests import standin
from tests.infer import script
from tests.infer.script import LLAMA

MODEL = standin.BYTES
TEXT = 'the memory of what it read'


def test_loss_is_that_of_the_document(session, params):
  """If it fails, a session predicts another text than training does.

  As in training, the input is the text one byte later, behind a newline.
  """
  ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)
  inputs = np.concatenate([[10], ids[:-1]])[None]
  logits, _ = MODEL.apply({'params': params}, inputs)
  log_p = np.asarray(jax.nn.log_softmax(logits))[0]
  expected = -log_p[np.arange(len(ids)), ids].mean()
  np.testing.assert_allclose(session.loss(TEXT), expected, rtol=1e-5)
  np.testing.assert_allclose(session.feed(TEXT), expected, rtol=1e-5)


def test_reading_in_parts(session, params):
  """If it fails, memory depends on how a text was cut."""
  session.feed(TEXT)
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  for part in (TEXT[:3], '', TEXT[3:4], TEXT[4:].encode()):
    other.feed(part)
  np.testing.assert_allclose(
      other.loss('next'), session.loss('next'), rtol=1e-5
  )
  assert other.generate(5, temperature=0) == session.generate(5, temperature=0)


def test_asking_does_not_change_the_memory(session):
  """If it fails, measuring a text teaches it."""
  session.feed(TEXT)
  before = session.loss('again')
  session.loss('something else')
  assert session.loss('again') == before


def test_reset(session):
  """If it fails, something survives forgetting."""
  before = session.loss(TEXT)
  session.feed(TEXT)
  assert session.loss(TEXT) != before
  session.reset()
  assert session.loss(TEXT) == before


def test_what_it_wrote_is_remembered(session, params):
  """If it fails, a session forgets its own words."""
  session.feed(TEXT)
  written = session.generate(6, temperature=0)
  reader = session_lib.Session(MODEL, params, ByteTokenizer())
  reader.feed(TEXT)
  assert written.isascii()  # Else it might not decode to what was written.
  reader.feed(written)
  np.testing.assert_allclose(
      reader.loss('next'), session.loss('next'), rtol=1e-5
  )


def test_n_calls_of_one_are_one_call_of_n(session, params, tmp_path):
  """If it fails, a text depends on how often it was asked for.

  With each call from the same key an untrained model wrote the same token for
  ever. The memory goes through its file on the way.
  """
  session.feed(TEXT)
  whole = session.generate(60)
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  other.feed(TEXT)
  parts = [other.generate(n) for n in (1, 1, 1, 7)]
  other.save(str(tmp_path / 'memory'))
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  other.load(str(tmp_path / 'memory'))
  parts += [other.generate(1) for _ in range(50)]
  assert ''.join(parts) + other.flush() == whole + session.flush()
  assert len(set(whole)) > 20
  assert other.loss('next') == pytest.approx(session.loss('next'), rel=1e-5)


def test_a_seed_holds_until_another_is_given(session, params, tmp_path):
  """If it fails, a sample cannot be repeated, or its seed is forgotten."""

  def written(*calls):
    other = session_lib.Session(MODEL, params, ByteTokenizer())
    other.feed(TEXT)
    text = ''.join(other.generate(n, seed=seed) for n, seed in calls)
    return text + other.flush()

  seven = written((40, 7))
  assert seven == written((10, 7), (30, None)) == written(*[(1, 7)] * 40)
  assert len({seven, written((40, 8)), written((40, 0))}) == 3
  assert written((40, None)) == written((40, 0))


@pytest.mark.parametrize('size', [1, 2, 3, 5, 100])
def test_text_is_given_out_when_it_is_whole(size):
  """If it fails, a character that is written in pieces is U+FFFD.

  The last llama is never finished; a stray byte is one character, there and
  then.
  """
  data = f'a{LLAMA}é'.encode() + b'\xff' + f'b{LLAMA}'.encode()[:-1]
  session = script.session(list(data))
  sizes = [min(size, len(data) - i) for i in range(0, len(data), size)]
  parts = [session.generate(n) for n in sizes]
  assert ''.join(parts) == f'a{LLAMA}é\ufffdb'
  assert session.unfinished == LLAMA.encode()[:-1]
  assert session.flush() == '\ufffd'
  assert session.flush() == session.unfinished.decode() == ''


def test_what_was_read_of_a_character_is_written_on(tmp_path):
  """If it fails, a prompt that ends inside a character is lost half.

  Its first bytes go through a file, too.
  """
  data = f'{LLAMA}!'.encode()
  session = script.session(list(data))
  session.feed(data[:2])
  session.save(str(tmp_path / 'memory'))
  other = script.session(list(data))
  other.load(str(tmp_path / 'memory'))
  assert other.generate(3) == f'{LLAMA}!'


@pytest.mark.parametrize('size', [1, 2, 100])
def test_it_stops_at_the_end_of_a_document(size):
  """If it fails, a model that has learned to stop cannot."""
  session = script.session([*b'one', 256, *b'two', 256], script.Ending())
  text = lambda n, **options: ''.join(
      session.generate(size, **options) for _ in range(0, n, size)
  )
  assert text(200) == 'one'
  assert session.ended and session.generate(5) == ''
  session.feed('t')  # What is fed next goes on from there.
  assert not session.ended
  assert text(200) == 'wo'
  session.reset()
  assert not session.ended
  assert session.generate(8, stop_at_end=False) == 'onetwo'


def test_a_document_may_begin_with_what_ends_it():
  """If it fails, GPT-2's vocabulary cannot write: it has one token for both."""

  class Same(script.Ending):
    bos = 256

  session = script.session([*b'one', 256], Same())
  assert session.generate(9) == 'one' and session.ended


def test_programs_are_few_whatever_the_lengths(session):
  """If it fails, each length of a text, or of what is written, is compiled."""
  session.feed('a' * 600)
  session.generate(3)  # The programs of a fresh memory, and of no model.
  session.feed('a' * 600)
  session.feed('a' * 73)
  compiled = []

  def listen(event, *_, **__):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for length in (*range(1, 40), 400, 511, 513, 1111):
      session.feed('b' * length)
      session.loss('c' * length)
      session.generate(length, temperature=length / 100)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled


@pytest.mark.parametrize('change', [
    {'temperature': float('nan')}, {'temperature': 1e-45}, {'max_tokens': 0},
    {'seed': -1}, {'seed': 2**32}, {'seed': 10**20}, {'seed': 0.5},
])
def test_bad_arguments_leave_the_memory(session, change):
  """If it fails, nonsense is answered from inside JAX, or half done."""
  session.feed(TEXT)
  before = session.loss('next')
  with pytest.raises(ConfigError, match=next(iter(change))) as error:
    session.generate(**{'max_tokens': 3} | change)
  assert '\n' not in str(error.value)
  assert session.loss('next') == before


def test_any_text_can_be_read(session, params):
  """If it fails, bytes that are no UTF-8 end in a traceback."""
  session.feed(b'caf\xe9 \xff\x00')
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  other.feed('caf\udce9 \udcff\x00')  # As Python has it from a command line.
  assert other.loss('next') == session.loss('next')
  assert other.loss(bytearray(b'next')) == session.loss(memoryview(b'next'))
  with pytest.raises(ConfigError, match='str or bytes; got int'):
    session.feed(3)
  with pytest.raises(ConfigError, match='surrogate'):
    session.feed('half of one: \ud83e')


def test_broken_parameters_are_said(params):
  """If it fails, a model of NaN poisons a memory without a word."""
  broken = jax.tree.map(lambda p: p * np.nan, params)
  session = session_lib.Session(MODEL, broken, ByteTokenizer())
  for use in (session.feed, session.loss):
    with pytest.raises(FloatingPointError, match='broken'):
      use(TEXT)
  with pytest.raises(FloatingPointError, match='broken'):
    session.generate(3)
  assert session.state is None


def test_a_stream_has_an_end(session):
  """If it fails, positions overflow after 2^31 tokens, and begin anew."""
  session.feed(TEXT)
  session._position = 2**31 - 3
  with pytest.raises(ConfigError, match='reset'):
    session.feed(TEXT)
  with pytest.raises(ConfigError, match='reset'):
    session.generate(3)
