"""A living memory: read, asked, written on, saved, forgotten."""

import jax
import numpy as np
import pytest

from hope_jax import sharding
from hope_jax.config import ConfigError, ModelConfig
from hope_jax.data.tokenizer import ByteTokenizer
from hope_jax.infer import session as session_lib
from tests import standin

MODEL = standin.Standin(ModelConfig(vocab_size=256))
TEXT = 'the memory of what it read'


@pytest.fixture(scope='module')
def params():
  tokens = np.zeros((1, 4), np.int32)
  return sharding.unbox(MODEL.init(jax.random.key(0), tokens)['params'])


@pytest.fixture
def session(params):
  return session_lib.Session(MODEL, params, ByteTokenizer())


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


def test_save_and_load(session, params, tmp_path):
  """If it fails, a memory does not survive the process."""
  path = str(tmp_path / 'memory.npz')
  session.feed(TEXT)
  session.save(path)
  other = session_lib.Session(MODEL, params, ByteTokenizer())
  other.load(path)
  assert other.loss('next') == session.loss('next')
  # A fresh memory can be saved too, and the file is replaced as a whole.
  session.reset()
  session.save(path)
  other.load(path)
  assert other.loss('next') == session.loss('next')


def test_load_what_is_no_memory(session, tmp_path):
  """If it fails, a wrong file is answered with a trace, or half loaded."""
  session.feed(TEXT)
  before = session.loss('next')
  for name, write in (
      ('text', lambda path: path.write_text('hello')),
      ('other', lambda path: np.savez(path.open('wb'), last=3, a=np.ones(2))),
  ):
    path = tmp_path / name
    write(path)
    with pytest.raises(ConfigError) as error:
      session.load(str(path))
    assert '\n' not in str(error.value)
  with pytest.raises(ConfigError, match='not a saved memory'):
    session.load(str(tmp_path / 'absent'))
  assert session.loss('next') == before
