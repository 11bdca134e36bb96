"""The chunk grid against a brute-force layout, one token at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.nested import levels

ROWS = 48


def _brute_force(tile, period, phase, starts, present):
  """Walks a row; returns (index, tiles, phase): see `levels.Grid`.

  index: of each token that is present; tiles: (opens, reset) of each tile.
  """
  index, tiles, position = {}, [], int(phase)
  for t in range(len(starts)):
    if not present[t]:
      continue
    if starts[t]:
      position = 0
    opens = position % tile == 0
    if starts[t] or opens or not tiles:
      tiles.append((position if opens else -1, bool(starts[t])))
    index[t] = (len(tiles) - 1) * tile + position % tile
    position += 1
  return index, tiles, position % period


def _rows(length, period, rng):
  """Random documents, paddings and phases; some rows without either."""
  phase = rng.integers(0, period, ROWS)
  starts = rng.random((ROWS, length)) < rng.choice([0, 0.05, 0.2], (ROWS, 1))
  present = rng.random((ROWS, length)) >= rng.choice([0, 0.1, 0.5], (ROWS, 1))
  present[:2] = False  # nothing but padding
  starts &= present
  return phase.astype(np.int32), starts, present


def _check(grid, tile, period, phase, starts, present):
  shape = starts.shape
  size = grid.opens.shape[1]
  crowded = 0
  for b in range(shape[0]):
    index, tiles, end = _brute_force(
        tile, period, phase[b], starts[b], present[b]
    )
    too_many = len(tiles) > size
    assert bool(grid.overflow[b]) == too_many
    crowded += too_many
    if too_many:
      continue
    token = np.full(grid.valid.shape[1], shape[1])
    for t, at in index.items():
      token[at] = t
      assert grid.index[b, t] == at
    np.testing.assert_array_equal(grid.token[b], token)
    np.testing.assert_array_equal(grid.valid[b], token < shape[1])
    opens = [o for o, _ in tiles] + [-1] * (size - len(tiles))
    reset = [r for _, r in tiles] + [False] * (size - len(tiles))
    np.testing.assert_array_equal(grid.opens[b], opens)
    np.testing.assert_array_equal(grid.reset[b], reset)
    assert grid.phase[b] == (end if index else phase[b])
  return crowded


@pytest.mark.parametrize('length,tile,period', [(37, 4, 8), (16, 8, 8)])
def test_packed_rows_are_laid_out_as_by_hand(length, tile, period):
  """If this fails, some token sits in another chunk than alone."""
  rng = np.random.default_rng(0)
  make = jax.jit(functools.partial(
      levels.token_grid, ROWS, length, tile=tile, period=period
  ))
  for _ in range(3):
    phase, starts, present = _rows(length, period, rng)
    grid = make(phase=phase, starts=starts, present=present)
    _check(grid, tile, period, phase, starts, present)
  # As many documents as tokens do not fit, and say so.
  everywhere = np.ones((ROWS, length), bool)
  grid = make(phase=phase, starts=everywhere, present=everywhere)
  crowded = _check(grid, tile, period, phase, everywhere, everywhere)
  assert crowded == (ROWS if length > 2 * -(-length // tile) + 8 else 0)


def test_rows_of_one_document_continue_at_any_phase():
  """If this fails, a text cut inside a chunk opens its next chunk wrongly."""
  length, tile, period = 13, 4, 8
  phase = np.arange(ROWS, dtype=np.int32) % period
  nowhere = np.zeros((ROWS, length), bool)
  grid = levels.token_grid(ROWS, length, tile=tile, period=period, phase=phase)
  assert not _check(grid, tile, period, phase, nowhere, ~nowhere)


def test_one_token_is_a_tile_of_one():
  """If this fails, a step of decoding costs a chunk, or opens none."""
  phase = np.arange(8, dtype=np.int32)
  grid = levels.token_grid(8, 1, tile=4, period=8, phase=phase)
  assert grid.valid.shape == (8, 1) and grid.valid.all()
  # The position of the token, at which each level sees whether it opens.
  np.testing.assert_array_equal(grid.opens[:, 0], phase)
  np.testing.assert_array_equal(grid.phase, (phase + 1) % 8)


def test_what_lies_in_order_stays_in_order():
  """If this fails, the cheap layout is another layout."""
  length, tile, period = 18, 4, 8
  zero = np.zeros(2, np.int32)
  plain = levels.token_grid(2, length, tile=tile, period=period)
  starts = np.zeros((2, length), bool)
  general = levels.token_grid(
      2, length, tile=tile, period=period, phase=zero, starts=starts
  )
  assert plain.token is None
  n = plain.opens.shape[1]
  np.testing.assert_array_equal(plain.valid, general.valid[:, : n * tile])
  np.testing.assert_array_equal(plain.opens, general.opens[:, :n])
  np.testing.assert_array_equal(plain.phase, general.phase)
  assert not plain.overflow.any() and not general.valid[:, n * tile :].any()


def test_an_aligned_grid_refuses_what_is_not_aligned():
  """If this fails, a document off the grid is mixed into its neighbour."""
  starts = np.zeros((3, 16), bool)
  starts[0, [0, 4, 12]] = starts[1, [0, 5]] = True
  grid = levels.token_grid(
      3, 16, tile=4, period=8, starts=starts, present=np.ones((3, 16), bool),
      aligned=True,
  )
  np.testing.assert_array_equal(grid.overflow, [False, True, False])
  np.testing.assert_array_equal(grid.opens[0], [0, 0, 4, 0])
  np.testing.assert_array_equal(grid.reset[0], [True, True, False, True])
  np.testing.assert_array_equal(grid.phase[::2], [4, 0])


def test_tiles_and_back():
  """If this fails, an output is given to another token than its input."""
  rng = np.random.default_rng(1)
  phase, starts, present = _rows(21, 8, rng)
  starts[:, 8:] = False  # few enough for the grid
  grid = levels.token_grid(
      ROWS, 21, tile=4, period=8, phase=phase, starts=starts, present=present
  )
  assert not grid.overflow.any()
  x = rng.normal(size=(ROWS, 21, 2)).astype(np.float32)
  tiles = levels.to_tiles(x, grid)
  assert tiles.shape[1:] == (ROWS, 4, 2)
  flags = levels.split(grid.valid, 4)
  np.testing.assert_array_equal(np.where(flags[..., None], 0, tiles), 0)
  back = levels.from_tiles(tiles, grid, 21)
  np.testing.assert_array_equal(back, np.where(present[..., None], x, 0))


def test_a_scan_visits_every_token_once_and_skips_empty_tiles():
  """If this fails, a level loses tokens, or pays for tiles that hold none."""
  starts = np.zeros((2, 20), bool)
  starts[:, [0, 7]] = True
  grid = levels.token_grid(
      2, 20, tile=4, period=4, starts=starts, phase=np.zeros(2, np.int32)
  )

  def body(carry, xs):
    x, valid = xs
    count = jnp.sum(valid, axis=1)
    return (carry[0] + jnp.sum(x, axis=1), carry[1] + 1), count

  x = np.arange(40.0, dtype=np.float32).reshape(2, 20)
  (total, visited), counts = levels.scan_tiles(
      body, (jnp.zeros(2), 0),
      (levels.to_tiles(x, grid), levels.split(grid.valid, 4)), grid,
  )
  np.testing.assert_allclose(total, x.sum(axis=1))
  assert visited == 2 + 4  # 7 and 13 tokens in chunks of 4
  np.testing.assert_array_equal(counts.sum(axis=0), [20, 20])
