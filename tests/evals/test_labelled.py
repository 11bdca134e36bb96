"""Labels: encoding, losses and exact match, against counting by hand."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ModelConfig
from hope_jax.evals import labelled
from hope_jax.models.factory import language_model
from hope_jax.tasks import labelling, needles
from hope_jax.tasks.formal_languages import Example
from hope_jax.train import losses as train
from tests.marks import quick


def example(symbols, *legal):
  return Example(tuple(symbols), tuple(frozenset(x) for x in legal))


SPLITS = {
    'train': [example('ab', 'b', ('a', 'end')), example('a', ('b',))],
    'bin0': [example('aba', 'b', ('a', 'end'), 'b')],
}


def test_encoding():
  """If it fails, targets belong to other symbols than they say."""
  encoded = labelling.encode(SPLITS)
  assert encoded.symbols == ('a', 'b')
  assert encoded.names == ('a', 'b', 'end')
  train_split = encoded.splits['train']
  np.testing.assert_array_equal(train_split['tokens'], [[0, 1], [0, 0]])
  np.testing.assert_array_equal(train_split['mask'], [[1, 1], [1, 0]])
  np.testing.assert_array_equal(
      train_split['targets'][0], [[0, 1, 0], [1, 0, 1]]
  )
  assert encoded.splits['bin0']['tokens'].shape == (1, 3)


def test_what_was_never_trained_is_named():
  with pytest.raises(ValueError, match="'bin0' .* symbol 'c'"):
    labelling.encode({**SPLITS, 'bin0': [example('c', 'a')]})
  with pytest.raises(ValueError, match="'bin0' .* target 'c'"):
    labelling.encode({**SPLITS, 'bin0': [example('a', 'c')]})


def test_epochs_hold_every_row_once_and_know_their_place():
  """If it fails, some strings are never trained, or a resume repeats them."""
  arrays = {'tokens': np.arange(10)[:, None]}
  epochs = labelling.Epochs(arrays, 3, seed=1)
  rows = [next(epochs)['tokens'].ravel() for _ in range(3)]
  assert len(set(np.concatenate(rows))) == 9
  again = labelling.Epochs(arrays, 3, seed=1)
  again.set_state(epochs.get_state())
  for _ in range(4):
    np.testing.assert_array_equal(
        next(again)['tokens'], next(epochs)['tokens']
    )
  with pytest.raises(ValueError, match='at most the 10 examples; got 11'):
    labelling.Epochs(arrays, 11, seed=0)


def test_losses_by_hand():
  """If it fails, sets or tokens are trained towards something else."""
  logits = np.random.default_rng(0).normal(size=(1, 2, 4))
  sets = np.array([[[1.0, 0, 1], [0, 0, 1]]])
  p = 1 / (1 + np.exp(-logits[..., :3]))
  expected = -np.mean(sets * np.log(p) + (1 - sets) * np.log(1 - p), axis=-1)
  np.testing.assert_allclose(
      train.position_losses(jnp.array(logits), jnp.array(sets)), expected,
      rtol=1e-5,
  )
  tokens = np.array([[2, 3]])
  q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(
      train.position_losses(jnp.array(logits), jnp.array(tokens)),
      [[-np.log(q[0, 0, 2]), -np.log(q[0, 1, 3])]], rtol=1e-5,
  )


def test_texts_of_a_row_do_not_see_each_other():
  """If it fails, a packed row trains on what a test does not show."""
  model = language_model(ModelConfig(
      architecture='transformer', vocab_size=8, dim=16, heads=2, layers=1,
      remat='none',
  ))
  batch = {
      'tokens': jnp.array([[1, 2, 3, 4, 5]]),
      'targets': jnp.array([[2, 3, 4, 5, 6]]),
      'mask': jnp.array([[0.0, 0, 0, 0, 1]]),
      'segment_ids': jnp.array([[1, 1, 2, 2, 2]]),
  }
  key = jax.random.key(0)
  params = jax.jit(model.init)(key, batch['tokens'])['params']
  loss_fn = train.make_loss_fn(model)

  def loss(first, **change):
    tokens = batch['tokens'].at[0, 0].set(first)
    made = {k: v for k, v in (batch | change).items() if v is not None}
    return float(loss_fn(params, made | {'tokens': tokens}, key)[0])

  assert loss(1) == loss(7)
  assert loss(1, segment_ids=None) != loss(7, segment_ids=None)


@pytest.mark.parametrize('sets', quick([False, True], [False]))
def test_answers_at_positions_are_those_of_whole_rows(sets):
  """If it fails, a model is trained at positions that nobody asked for."""
  model = language_model(ModelConfig(
      architecture='linear_attention', vocab_size=8, dim=16, heads=2, layers=1,
      remat='none',
  ))
  rng = np.random.default_rng(0)
  mask = np.zeros((4, 9), np.float32)
  for row, asked in enumerate(([1, 8], [0, 3, 4], [], [5])):
    mask[row, asked] = 1
  shape = (4, 9, 5) if sets else (4, 9)
  whole = {
      'tokens': rng.integers(0, 8, (4, 9)).astype(np.int32),
      'targets': rng.integers(0, 2 if sets else 8, shape).astype(
          np.float32 if sets else np.int32
      ),
      'mask': mask,
      'segment_ids': np.array([[1] * 4 + [2] * 5] * 4, np.int32),
  }
  kept = labelling.at_positions(whole)
  assert kept['positions'].shape == kept['mask'].shape == (4, 3)
  assert kept['targets'].shape == (4, 3, *shape[2:])
  key = jax.random.key(0)
  params = jax.jit(model.init)(key, whole['tokens'])['params']
  loss = jax.jit(
      jax.value_and_grad(train.make_loss_fn(model), has_aux=True)
  )
  (have, _), grads = loss(params, kept, key)
  (want, _), expected = loss(params, whole, key)
  np.testing.assert_allclose(have, want, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert labelled.evaluate(model, params, kept, 3) == labelled.evaluate(
      model, params, whole, 3
  )


class Says(nn.Module):
  """Answers each token with the set of names that its bits spell."""

  @nn.compact
  def __call__(self, tokens, state=None, *, segment_ids=None, positions=None):
    del segment_ids, positions
    bits = (tokens[..., None] >> jnp.arange(3)) & 1
    return bits - 0.5, state


def test_exact_match_counts_whole_strings():
  """If it fails, a string with one wrong set passes, or padding counts."""
  tokens = np.array([[5, 2, 0], [5, 2, 7], [1, 1, 1]])
  targets = (tokens[..., None] >> np.arange(3)) & 1
  targets[1, 2] = [0, 1, 1]  # one symbol of one set is wrong
  targets[0, 2] = 1  # padding: not asked
  mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]])
  arrays = {
      'tokens': tokens, 'targets': targets.astype('f4'),
      'mask': mask.astype('f4'),
  }
  for batch_size in (2, 3):
    found = labelled.evaluate(Says(), {}, arrays, batch_size)
    assert found == {'exact': 2 / 3, 'positions': 7 / 8}
  logits = jax.nn.one_hot(tokens, 8)
  assert train.is_correct(logits, jnp.array(tokens)).all()


class Recites(nn.Module):
  """Says a text by heart, whatever it reads: what comes after each position."""

  @nn.compact
  def __call__(self, tokens, state=None, *, segment_ids=None, positions=None):
    del segment_ids
    text = self.get_variable('params', 'text')
    start = 0 if state is None else state
    at = start + jnp.arange(tokens.shape[1])
    logits = jax.nn.one_hot(text[at], 256)[None].repeat(len(tokens), axis=0)
    if positions is not None:
      logits = jnp.take_along_axis(logits, positions[..., None], axis=1)
    return logits, start + tokens.shape[1]


def _recited(change):
  """Scores of a model that says a row's answer, changed."""
  made = needles.generate('mv_niah', 0, 1, length=700)
  asked = np.flatnonzero(made['mask'][0])
  text = made['targets'][0].copy()
  answer = bytes(text[asked].tolist()).decode()
  said = change(answer).encode()
  assert len(said) == len(asked)
  text[asked] = list(said)
  params = {'text': text}
  found = labelled.evaluate(
      Recites(), params, labelling.at_positions(made), 2
  )
  decode = lambda ids: bytes(ids.tolist())
  return found, labelled.generated(Recites(), params, made, decode)


def _swap(answer):
  first, second, *rest = answer[:-1].split(', ')
  return ', '.join([second, first, *rest]) + '.'


@pytest.mark.parametrize(
    ('change', 'parts', 'generated'),
    [
        (lambda answer: answer, 1, 1),
        # Of four codes one with a wrong digit.
        (lambda answer: 'x' + answer[1:], 3 / 4, 3 / 4),
        # In another order: RULER looks for them wherever they are.
        (_swap, 2 / 4, 1),
        # A wrong mark is no wrong code to RULER.
        (lambda answer: answer[:-1] + '!', 3 / 4, 1),
        (lambda answer: 'x' * len(answer), 0, 0),
    ],
)
def test_part_credit_by_hand(change, parts, generated):
  """If it fails, a needle of four codes is scored otherwise than it says."""
  found, written = _recited(change)
  assert found['parts'] == parts and written == generated
  assert found['exact'] == (parts == 1)


def test_an_answer_of_one_part_has_no_part_credit():
  """If it fails, tables say the same twice."""
  made = needles.generate('s_niah_1', 0, 2, length=300)
  found = labelled.evaluate(
      Recites(), {'text': made['targets'][0]}, labelling.at_positions(made), 2
  )
  assert set(found) == {'exact', 'positions'} and found['exact'] == 0.5
