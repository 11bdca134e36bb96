"""The two kernels of `tile_scan`.

The grid is (batch blocks, head blocks, tiles) and its last axis is sequential.
The carry never leaves VMEM between tiles: it lives in the block of its own
final value, which Mosaic keeps while the block's index stays the same. The
backward kernel holds the cotangents of the carry and of the params in the same
way. The carries that its tiles start from are either saved to HBM by the
forward kernel, or computed anew into a stack in VMEM by a first sweep of the
backward kernel (2 N steps in place of N).
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from hope_jax.kernels.dgd.tpu import layouts
from hope_jax.kernels.dgd.tpu.cost import cost_of
from hope_jax.kernels.dgd.tpu.layouts import Plan
from hope_jax.types import Array, PyTree


class _Layouts(NamedTuple):
  """How the arrays of a scan lie: trees of `layouts`, one for each argument."""

  params: PyTree
  carry: PyTree
  xs: PyTree
  marks: PyTree
  kept: PyTree


def _sizes(xs: PyTree) -> tuple[int, int, int]:
  """B, T and H."""
  return jax.tree.leaves(xs)[0].shape[:3]


def _layouts(plan: Plan, params, carry, xs, marks, kept) -> _Layouts:
  """Of the arguments of `step`; `kept` as it is saved, [N, B, H, ., .]."""
  batch = _sizes(xs)[0]
  return _Layouts(
      _matrices(plan, params, batch), _matrices(plan, carry, batch),
      _tokens(plan, xs), _tokens(plan, marks),
      jax.tree.map(lambda x: layouts.Matrix(plan, x.shape[3:]), kept),
  )


def _matrices(plan: Plan, tree: PyTree, batch: int) -> PyTree:
  return jax.tree.map(
      lambda x: layouts.Matrix(plan, x.shape[2:], x.shape[0] == 1 < batch), tree
  )


def _tokens(plan: Plan, tree: PyTree) -> PyTree:
  return jax.tree.map(
      lambda x: (
          layouts.Vectors(plan, x.shape[3]) if x.ndim == 4
          else layouts.Numbers(plan)
      ),
      tree,
  )


def _block(plan: Plan, x: Array, tokens: bool) -> jax.ShapeDtypeStruct:
  """What `step` sees of an array."""
  middle = (plan.tile,) if tokens else ()
  rest = x.shape[3:] if tokens else x.shape[2:]
  shape = (plan.rows * plan.heads, *middle, *rest)
  return jax.ShapeDtypeStruct(shape, x.dtype)


def _blocks(plan, params, carry, xs, marks) -> list[PyTree]:
  """What `step` sees of its first four arguments."""
  return [
      jax.tree.map(functools.partial(_block, plan, tokens=tokens), tree)
      for tree, tokens in (
          (params, False), (carry, False), (xs, True), (marks, True)
      )
  ]


def _call(plan: Plan, kernel, steps: int, sizes, scratch, cost, name):
  """A `pallas_call` without its specs."""
  b, _, h = sizes
  return dict(
      kernel=kernel,
      grid=(b // plan.rows, h // plan.heads, steps),
      scratch_shapes=scratch,
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary'),
          vmem_limit_bytes=plan.vmem_limit_bytes,
      ),
      cost_estimate=cost,
      interpret=plan.interpret,
      name=name,
  )


def forward(
    step, keep, plan, params, carry, xs, marks, *, save: bool,
    differentiated: bool,
):
  """One sweep: last carry, outputs; if asked, carries and kept of all tiles."""
  b, t, h = sizes = _sizes(xs)
  tiles = t // plan.tile
  blocks = _blocks(plan, params, carry, xs, marks)
  blocks.append(jax.eval_shape(keep, blocks[2]) if keep else ())
  ys = jax.tree.map(
      lambda y: jax.ShapeDtypeStruct((b, t, h, *y.shape[2:]), y.dtype),
      jax.eval_shape(step, *blocks)[1],
  )
  kept = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((tiles, b, h, *x.shape[1:]), x.dtype),
      blocks[-1] if differentiated else (),
  )
  saved = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((tiles, *x.shape), x.dtype),
      carry if save else (),
  )
  of = _layouts(plan, params, carry, xs, marks, kept)
  of_ys = _tokens(plan, ys)

  def kernel(params, carry, xs, marks, state, ys, saved, kept):
    """state: the carry, resident. First tile: it is what was given."""

    @pl.when(pl.program_id(2) == 0)
    def _():
      jax.tree.map(_copy, state, carry)

    now = _load(of.carry, state)
    if save:
      _store(of.carry, saved, now)
    inputs = _load(of.xs, xs)
    matrices = keep(inputs) if keep else ()
    if differentiated:
      _store(of.kept, kept, matrices)
    new, out = step(
        _spread(of.params, _load(of.params, params)), now, inputs,
        _load(of.marks, marks), matrices,
    )
    _store(of.carry, state, new)
    _store(of_ys, ys, out)

  in_order = lambda n: n
  cost = cost_of(
      step, blocks, tiles * (b // plan.rows) * (h // plan.heads),
      params, carry, carry, xs, marks, ys, saved, kept,
  )
  last, out, states, kept = pl.pallas_call(
      in_specs=(
          _matrix_specs(of.params), _matrix_specs(of.carry),
          _token_specs(of.xs, in_order), _token_specs(of.marks, in_order),
      ),
      out_specs=(
          _matrix_specs(of.carry), _token_specs(of_ys, in_order),
          _saved_specs(of.carry, in_order) if save else (),
          _saved_specs(of.kept, in_order),
      ),
      out_shape=(_shapes(carry), _hbm_shapes(of_ys, ys), saved, kept),
      **_call(plan, kernel, tiles, sizes, (), cost, 'tile_scan_forward'),
  )(params, carry, _to_hbm(of.xs, xs), _to_hbm(of.marks, marks))
  return last, _from_hbm(of_ys, out), states, kept


class _Refs(NamedTuple):
  """Blocks of the backward kernel: it reads the first seven, writes the rest.

  `dcarry` and `dparams` stay in VMEM from tile to tile.
  """

  params: PyTree
  states: PyTree  # the carry that the tile starts from, or the first tile's
  xs: PyTree
  marks: PyTree
  kept: PyTree
  dlast: PyTree  # cotangent of the last carry
  dys: PyTree
  dparams: PyTree
  dcarry: PyTree
  dxs: PyTree


class _Sweep(NamedTuple):
  """How the backward kernel comes by the carry that each tile starts from."""

  kernel: Callable  # (pull, tile, refs of `_Refs`, scratch): a step of the grid
  steps: int  # of the grid's last axis
  inputs: Callable  # step -> the tile whose inputs are read
  outputs: Callable  # step -> the tile whose gradients are written
  states: PyTree  # block specs of `_Refs.states`
  scratch: tuple


def _saved_sweep(of: _Layouts, tiles: int) -> _Sweep:
  """Carries come from HBM: N steps, last tile first."""

  def kernel(pull, tile, refs):
    del tile
    pull(_load(of.carry, refs.states))

  back = lambda n: tiles - 1 - n
  states = _saved_specs(of.carry, back)
  return _Sweep(kernel, tiles, back, back, states, ())


def _recomputing_sweep(of: _Layouts, tiles: int, carry: PyTree) -> _Sweep:
  """Carries are computed anew: N steps that fill a stack, N that take from it.

  carry: what a block holds of it, [R, ., .]. The stack of all tiles is in VMEM.
  """

  def kernel(pull, tile, refs, stack):
    n = pl.program_id(2)

    @pl.when(n == 0)
    def _():
      first = _load(of.carry, refs.states)
      jax.tree.map(lambda s, x: s.__setitem__(0, x), stack, first)

    @pl.when(n < tiles - 1)
    def _():
      new, _ = tile(jax.tree.map(lambda s: s[n], stack))
      jax.tree.map(lambda s, x: s.__setitem__(n + 1, x), stack, new)

    @pl.when(n >= tiles)
    def _():
      pull(jax.tree.map(lambda s: s[2 * tiles - 1 - n], stack))

  # The outputs' blocks wait at the last tile while the stack is filled.
  back = lambda n: jnp.where(n < tiles, tiles - 1, 2 * tiles - 1 - n)
  both = lambda n: jnp.where(n < tiles, n, 2 * tiles - 1 - n)
  stack = jax.tree.map(lambda x: pltpu.VMEM((tiles, *x.shape), x.dtype), carry)
  return _Sweep(
      kernel, 2 * tiles, both, back, _matrix_specs(of.carry), (stack,)
  )


def _backward_kernel(step, sweep: _Sweep, of: _Layouts, of_dys, *refs) -> None:
  """One step of the reverse sweep, on the blocks of one tile."""
  refs, scratch = _Refs(*refs[: len(_Refs._fields)]), refs[len(_Refs._fields) :]
  params, xs = _load(of.params, refs.params), _load(of.xs, refs.xs)
  marks, kept = _load(of.marks, refs.marks), _load(of.kept, refs.kept)

  @pl.when(pl.program_id(2) == 0)
  def _():
    jax.tree.map(_copy, refs.dcarry, refs.dlast)
    jax.tree.map(_zero, refs.dparams)

  def tile(carry, params=params, xs=xs):
    """The tile, forward: (carry, ys)."""
    return step(_spread(of.params, params), carry, xs, marks, kept)

  def pull(carry):
    """The tile, backward, where it starts from this carry."""
    _, vjp = jax.vjp(lambda p, c, x: tile(c, p, x), params, carry, xs)
    dparams, dcarry, dxs = vjp(
        (_load(of.carry, refs.dcarry), _load(of_dys, refs.dys))
    )
    _store(of.carry, refs.dcarry, dcarry)
    jax.tree.map(_add, refs.dparams, dparams)
    _store(of.xs, refs.dxs, dxs)

  sweep.kernel(pull, tile, refs, *scratch)


def backward(step, plan, params, states, xs, marks, kept, dlast, dys):
  """The reverse sweep: gradients of params, of the first carry and of xs.

  `states` are the carries of all tiles, or where they are recomputed the first.
  """
  b, t, h = sizes = _sizes(xs)
  tiles = t // plan.tile
  of = _layouts(plan, params, dlast, xs, marks, kept)
  of_dys = _tokens(plan, dys)
  blocks = _blocks(plan, params, dlast, xs, marks)
  blocks.append(jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          (plan.rows * plan.heads, *x.shape[3:]), x.dtype
      ),
      kept,
  ))
  if plan.save_states == 'recompute':
    sweep = _recomputing_sweep(of, tiles, blocks[1])
  else:
    sweep = _saved_sweep(of, tiles)
  # Every block of rows has a gradient of its own of params that rows share.
  shared = lambda x: x.shape[0] == 1 < b
  dparams_shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          (b // plan.rows if shared(x) else b, *x.shape[1:]), jnp.float32
      ),
      params,
  )

  def pulled(params, carry, xs, marks, kept):
    out, vjp = jax.vjp(lambda *a: step(*a, marks, kept), params, carry, xs)
    return vjp(out)

  cost = cost_of(
      pulled, blocks, tiles * (b // plan.rows) * (h // plan.heads),
      params, states, xs, xs, marks, kept, dlast, dlast, dys, dparams_shapes,
  )
  dparams, dcarry, dxs = pl.pallas_call(
      in_specs=(
          _matrix_specs(of.params), sweep.states,
          _token_specs(of.xs, sweep.inputs),
          _token_specs(of.marks, sweep.inputs),
          _saved_specs(of.kept, sweep.inputs),
          _matrix_specs(of.carry), _token_specs(of_dys, sweep.outputs),
      ),
      out_specs=(
          _matrix_specs(of.params, gradient=True), _matrix_specs(of.carry),
          _token_specs(of.xs, sweep.outputs),
      ),
      out_shape=(dparams_shapes, _shapes(dlast), _hbm_shapes(of.xs, xs)),
      **_call(
          plan,
          functools.partial(_backward_kernel, step, sweep, of, of_dys),
          sweep.steps, sizes, sweep.scratch, cost, 'tile_scan_backward',
      ),
  )(
      params, states, _to_hbm(of.xs, xs), _to_hbm(of.marks, marks), kept, dlast,
      _to_hbm(of_dys, dys),
  )
  dparams = jax.tree.map(
      lambda g, x: (
          jnp.sum(g, 0, keepdims=True) if shared(x) else g
      ).astype(x.dtype),
      dparams, params,
  )
  return dparams, dcarry, _from_hbm(of.xs, dxs)


def _matrix_specs(leaves: PyTree, gradient: bool = False) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.spec(gradient), leaves)


def _saved_specs(leaves: PyTree, when: Callable) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.saved_spec(when), leaves)


def _token_specs(leaves: PyTree, when: Callable) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.spec(when), leaves)


def _to_hbm(leaves: PyTree, tree: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf, x: leaf.to_hbm(x), leaves, tree)


def _from_hbm(leaves: PyTree, tree: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf, x: leaf.from_hbm(x), leaves, tree)


def _hbm_shapes(leaves: PyTree, tree: PyTree) -> PyTree:
  """What `_to_hbm` makes of arrays [B, T, H, .]."""
  return jax.tree.map(
      lambda leaf, x: jax.ShapeDtypeStruct(leaf.shape(*x.shape[:3]), x.dtype),
      leaves, tree,
  )


def _shapes(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _copy(new, old) -> None:
  new[...] = old[...]


def _zero(ref) -> None:
  ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _add(ref, x: Array) -> None:
  ref[...] += x.reshape(ref.shape).astype(ref.dtype)


def _load(leaves: PyTree, refs: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf, ref: leaf.load(ref), leaves, refs)


def _store(leaves: PyTree, refs: PyTree, values: PyTree) -> None:
  jax.tree.map(lambda leaf, ref, x: leaf.store(ref, x), leaves, refs, values)


def _spread(leaves: PyTree, values: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf, x: leaf.spread(x), leaves, values)
