"""`tile_scan`, the kernel itself, on a toy recurrence against `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.kernels.dgd.tpu.layouts import Plan
from hope_jax.kernels.dgd.tpu.tile_scan import tile_scan

B, T, H, C = 4, 21, 4, 8


def _keep(xs):
  return jnp.matmul(xs[1], jnp.swapaxes(xs[1], -1, -2))


def _step(params, carry, xs, marks, kept):
  """A recurrence that uses every kind of array, and both kinds of params."""
  wide, narrow, number = xs
  own, shared = params
  weight = (number * marks)[..., None]
  values = jnp.tanh(jnp.matmul(narrow, shared)) + weight * wide
  values = values + 0.1 * jnp.matmul(kept, wide)
  new = 0.5 * carry + own + jnp.matmul(jnp.swapaxes(narrow, -1, -2), values)
  return new, (jnp.matmul(narrow, carry), jnp.sum(values, axis=-1))


def _arguments():
  rng = np.random.default_rng(0)
  make = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
  params = make(B, H, 8, 128), make(1, H, 8, 128)
  xs = make(B, T, H, 128), make(B, T, H, 8), make(B, T, H)
  return params, make(B, H, 8, 128), xs


MARKS = jnp.asarray(np.arange(B * T * H).reshape(B, T, H) % 3, jnp.int32)


def _serial(params, carry, xs):
  """One tile after the other, all rows at once."""
  def tiles(x):
    x = jnp.pad(x, [(0, 0), (0, -T % C)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.moveaxis(x.reshape(B, -1, C, *x.shape[2:]), 3, 2)
    return jnp.moveaxis(x, 1, 0).reshape(-1, B * H, C, *x.shape[4:])

  flat = lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])).reshape(
      B * H, *x.shape[2:]
  )
  params, carry = jax.tree.map(flat, (params, carry))
  xs, marks = jax.tree.map(tiles, (xs, MARKS))
  carry, ys = jax.lax.scan(
      lambda c, x: _step(
          params, c, *x, jax.lax.stop_gradient(_keep(x[0]))
      ),
      carry, (xs, marks),
  )

  def tokens(y):
    y = y.reshape(-1, B, H, C, *y.shape[3:])
    y = jnp.moveaxis(jnp.moveaxis(y, 0, 1), 2, 3)
    return y.reshape(B, -1, H, *y.shape[4:])[:, :T]

  return carry.reshape(B, H, *carry.shape[1:]), jax.tree.map(tokens, ys)


def _pulled(f):
  """Outputs of f and gradients of a fixed functional of them."""
  def run(*args):
    out, pull = jax.vjp(f, *args)
    return out, pull(jax.tree.map(jnp.cos, out))

  return jax.jit(run)(*_arguments())


@pytest.mark.parametrize('save_states', ['hbm', 'recompute'])
@pytest.mark.parametrize(
    'rows,heads,tiles_per_call', [(2, 2, 3), (1, 1, 3), (1, 4, 1)]
)
def test_the_kernel_is_the_scan(
    rows, heads, tiles_per_call, save_states
):
  """If this fails, a block is cut wrongly, or a gradient is not gathered."""
  plan = Plan(C, rows, heads, save_states, tiles_per_call, None, True)
  actual = _pulled(
      lambda p, c, x: tile_scan(_step, p, c, x, MARKS, plan, _keep)
  )
  expected = _pulled(_serial)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert a.shape == e.shape
    assert np.linalg.norm(a - e) <= 1e-5 * np.linalg.norm(e)
