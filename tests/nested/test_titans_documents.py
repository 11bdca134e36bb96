"""The self-modifying layer on packed rows, on cut texts, and in time."""


import jax
import numpy as np
import pytest

from hope_jax.nested import titans
from tests.nested.titans_cases import (
  PACKINGS,
  VARIANTS,
  B,
  T,
  assert_state,
  compiled,
  cut,
  documents,
  expect,
  inputs,
  make_params,
  make_streams,
  options,
  packing,
  run_packed,
)


@pytest.mark.parametrize('name', list(PACKINGS))
@pytest.mark.parametrize(
    'variant,kind',
    [
        ('default', 'mlp'),
        ('slow_boundary', 'matrix'),
        ('low_rank_length', 'matrix'),
        pytest.param('fast_projections', 'mlp', marks=pytest.mark.slow),
        pytest.param('chunk_1', 'mlp', marks=pytest.mark.slow),
        pytest.param('low_rank', 'mlp', marks=pytest.mark.slow),
    ],
)
def test_packing_is_the_oracles(x64, variant, kind, name):
  """If this fails, a document sees its neighbour, or padding is written."""
  starts, present = packing(name)
  params, x, gates, changes = inputs(kind, variant)
  o, state, _ = run_packed(params, x, starts, present, gates, **changes)
  expected, *expected_state = expect(
      params, x, starts=starts, present=present, gates=gates, **changes
  )
  np.testing.assert_allclose(o, expected, atol=1e-11)
  assert_state(state, expected_state)
  # What stands in the padding does not matter, bit for bit.
  other, of_input = jax.tree.map(lambda s: s.copy(), (x, gates))
  for s in jax.tree.leaves((other, of_input)):
    s[~present] = 7.0
  again, new, _ = run_packed(
      params, other, starts, present, of_input, **changes
  )
  np.testing.assert_array_equal(o, again)
  jax.tree.map(np.testing.assert_array_equal, state, new)


def test_padding_alone_changes_nothing(x64):
  """If this fails, padding moves the chunk grid where nothing is packed."""
  params, x = make_params('matrix'), make_streams()
  _, present = packing('padding')
  with jax.disable_jit():
    o, state, _ = titans.layer(params, x, options=options(), present=present)
  expected, *expected_state = expect(params, x, present=present)
  np.testing.assert_allclose(o, expected, atol=1e-11)
  assert_state(state, expected_state)


def test_the_oracle_packs_what_it_gives_alone():
  """If this fails, packed rows are held to a wrong idea of a document."""
  params, x = make_params('mlp'), make_streams()
  starts, _ = packing('documents')
  o, *_ = expect(params, x, starts=starts)
  for b in range(B):
    first = np.flatnonzero(starts[b])
    for start, stop in zip(first, (*first[1:], T)):
      own = cut(x, slice(b, b + 1), slice(start, stop))
      alone, *_ = expect(params, own)
      np.testing.assert_array_equal(o[b : b + 1, start:stop], alone)


@pytest.mark.parametrize(
    'variant,kind', [('default', 'matrix'), ('slow_projections', 'matrix')]
)
def test_aligned_grid_is_the_same_where_it_may_be_used(x64, variant, kind):
  """If this fails, grid='aligned' is another model, not a faster one."""
  params, x = make_params(kind), make_streams()
  starts = documents(((0, 8, 12), (0, 4, 20)))
  present = np.ones((B, T), bool)
  present[0, 6:8] = present[0, 22:] = False
  present[1, 11:20] = False
  changes = VARIANTS[variant]
  o, state, _ = run_packed(
      params, x, starts, present, aligned=True, **changes
  )
  expected, *expected_state = expect(
      params, x, starts=starts, present=present, **changes
  )
  np.testing.assert_allclose(o[present], expected[present], atol=1e-11)
  assert_state(state, expected_state)


def test_what_a_grid_has_no_room_for_is_nan():
  """If this fails, documents off the grid give plausible, wrong numbers."""
  params, x = make_params('matrix'), make_streams()
  starts = documents(((0, 8), (0, 9)))
  o, _, _ = run_packed(params, x, starts, aligned=True)
  assert np.isfinite(o[0]).all()
  assert np.isnan(o[1]).all()
  # 64 documents of one token, where chunks are 4 tokens: more than 2 T / C + 8.
  starts = np.ones((B, 64), bool)
  starts[0, 1:] = False
  o, _, _ = run_packed(params, make_streams(64), starts)
  assert np.isfinite(o[0]).all()
  assert np.isnan(o[1]).all()


@pytest.mark.parametrize('tokens', [1, 11])
@pytest.mark.parametrize(
    'variant,kind',
    [
        ('default', 'mlp'), ('slow_boundary', 'matrix'),
        ('low_rank_length', 'matrix'), ('length_slow', 'matrix'),
    ],
)
def test_a_state_handed_over_continues_the_text(x64, variant, kind, tokens):
  """If this fails, a text in two calls, or token by token, is not the text."""
  params, x, gates, changes = inputs(kind, variant, 22)
  expected, *expected_state = expect(params, x, gates=gates, **changes)
  state = titans.initial_state(params, B, options(**changes))
  outputs = []
  for start in range(0, 22, tokens):
    part, some = cut((x, gates), slice(None), slice(start, start + tokens))
    o, state, _ = compiled(**changes)(params, part, state, gates=some)
    outputs.append(o)
  np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-11)
  assert_state(state, expected_state)


def test_a_cut_inside_packed_documents_continues_them(x64):
  """If this fails, a row of documents cannot be cut where a batch ends."""
  params, x = make_params('matrix'), make_streams(22)
  starts = packing('documents')[0][:, :22]
  changes = VARIANTS['slow_projections']
  expected, *expected_state = expect(params, x, starts=starts, **changes)
  state = titans.initial_state(params, B, options(**changes))
  outputs = []
  for at in (np.s_[:, :11], np.s_[:, 11:]):
    part = cut(x, *at)
    o, state, _ = compiled(**changes)(params, part, state, starts=starts[at])
    outputs.append(o)
  np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-11)
  assert_state(state, expected_state)


@pytest.mark.parametrize(
    'read,kind', [('causal', 'mlp'), ('boundary', 'matrix')]
)
def test_the_future_does_not_reach_the_past(read, kind):
  """If this fails, the layer sees what it should predict. Bit for bit."""
  params, x = make_params(kind), make_streams()
  starts, _ = packing('documents')
  before, _, _ = run_packed(params, x, starts, read=read)
  for t in (1, 4, 11, T - 1):
    changed = jax.tree.map(lambda s: s.copy(), x)
    for s in jax.tree.leaves(changed):
      s[:, t] = -3 * s[:, t] + 1
    after, _, _ = run_packed(params, changed, starts, read=read)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any()
  # Nor does the layout of later documents.
  later = documents(((0, 1, 2, 9, 16, 21), (0, 5, 20)))
  after, _, _ = run_packed(params, x, later, read=read)
  np.testing.assert_array_equal(before[0, :14], after[0, :14])
  np.testing.assert_array_equal(before[1, :19], after[1, :19])
