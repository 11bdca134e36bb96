"""What a second reading costs, against one long call of the same model."""

import jax
import numpy as np
import pytest

from hope_jax import sharding
from hope_jax.config import ContinuumConfig, ModelConfig, TitansConfig
from hope_jax.evals import second_reading
from hope_jax.models.factory import language_model
from tests import standin

BOS = 3


def some_passages(vocab, *, length=8, distances=(0, 8, 20)):
  ids = np.random.default_rng(0).integers(0, vocab, 100).astype(np.int32)
  return second_reading.choose(
      ids, np.full(100, 2), count=3, length=length, distances=distances
  )


def init(model):
  tokens = np.zeros((1, 8), np.int32)
  variables = jax.jit(model.init)(jax.random.key(1), tokens)
  return sharding.unbox(variables['params'])


def bits(logits, targets):
  """Returns bits a token of each row, in float64."""
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  right = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  return -right.mean(1) / np.log(2)


def test_against_one_long_call():
  """If it fails, the four losses are not those of the streams they name.

  The stand-in remembers in a decaying sum, so the streams differ. Two bytes a
  token halve all losses. 1e-5: differences of losses of about 2 in float32.
  """
  model = standin.Standin()
  params = init(model)
  passages = some_passages(standin.VOCAB)
  found = second_reading.second_reading(model, params, passages, bos=BOS)
  assert found['distances'] == [0, 8, 20]
  assert (found['passages'], found['passage_bytes']) == (3, 16)
  longest = 8 + 20 + 8
  apply = jax.jit(lambda tokens: model.apply({'params': params}, tokens)[0])
  for i, distance in enumerate(found['distances']):
    again = passages.tokens
    filler = passages.filler[:, :distance]
    streams = {
        'first': [again],
        'carried': [again, filler, again],
        'reset': [again],
        'control': [filler, again],
    }
    expected = {}
    for name, parts in streams.items():
      text = np.concatenate([np.full((3, 1), BOS), *parts], axis=1)[:, :-1]
      end = text.shape[1]
      # One shape for all: what comes later changes nothing.
      logits = apply(np.pad(text, ((0, 0), (0, longest - end))))
      expected[name] = bits(logits[:, end - 8 : end], again) / 2
    expected['reset - carried'] = expected['reset'] - expected['carried']
    expected['control - carried'] = expected['control'] - expected['carried']
    for name, values in expected.items():
      error = np.sqrt(((values - values.mean()) ** 2).sum() / (2 * 3))
      assert found[name][i]['mean'] == pytest.approx(values.mean(), abs=1e-5)
      assert found[name][i]['error'] == pytest.approx(error, abs=1e-5)
  assert found['reset - carried'][0]['mean'] != pytest.approx(0, abs=1e-3)
  assert found['first'] == found['reset']


def test_passages_are_apart():
  """If it fails, a passage is read in its own filler, and memory looks good."""
  ids = np.arange(1000)
  passages = second_reading.choose(
      ids, np.ones(1000), count=4, length=10, distances=(0, 100)
  )
  assert passages.tokens.shape == (4, 10)
  assert passages.filler.shape == (4, 100)
  read = np.concatenate([passages.tokens, passages.filler], axis=1)
  assert len(np.unique(read)) == read.size
  # Each row's filler follows the passage of another row.
  assert (passages.filler[:, 0] != passages.tokens[:, -1] + 1).all()


def test_short_texts():
  """If it fails, a small corpus ends the quickstart in a trace."""
  choose = lambda size: second_reading.choose(
      np.arange(size), np.ones(size), length=10, distances=(0, 50)
  )
  assert choose(10_000).tokens.shape == (16, 10)
  assert choose(130).tokens.shape == (2, 10)
  assert choose(119).distances == (0,)
  assert choose(19) is None


def test_memory_off_remembers_nothing():
  """If it fails, "memory off" has a memory, and the comparison is void.

  All that a second reading can then see of the stream before it is what the
  convolutions reach back to, three tokens a layer; losses of the tokens after
  those are equal to the last digit or so.
  """
  titans = TitansConfig(
      memory='matrix', chunk=4, projection_chunk=4, momentum=False,
      grid='aligned',
  )
  on = ModelConfig(
      vocab_size=16, dim=8, layers=1, heads=2, titans=titans,
      continuum=ContinuumConfig(periods=(1,)), remat='none',
  )
  off = language_model(second_reading.memory_off(on))
  params = init(language_model(on))
  passages = some_passages(16, length=16, distances=(16,))
  read = jax.jit(
      lambda tokens, state: off.apply({'params': params}, tokens, state=state)
  )
  _, state = read(passages.filler, None)
  carried, _ = read(passages.tokens, state)
  fresh, _ = read(passages.tokens, None)
  difference = np.abs(np.asarray(carried - fresh)).max((0, 2))
  assert difference[:3].max() > 1e-3
  assert difference[3:].max() < 1e-5
