"""The two kernels of `tile_scan`, and what tells XLA their cost.

The grid is (batch blocks, head blocks, tiles) and its last axis is sequential.
The carry never leaves VMEM between tiles: it lives in the block of its own
final value, which Mosaic keeps while the block's index stays the same. The
backward kernel holds the cotangents of the carry and of the params in the same
way. The carries that its tiles start from are either saved to HBM by the
forward kernel, or computed anew into a stack in VMEM by a first sweep of the
backward kernel (2 N steps in place of N).
"""

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from hope_jax.kernels.dgd.tpu import layouts
from hope_jax.kernels.dgd.tpu.layouts import Plan
from hope_jax.types import Array, PyTree


def _sizes(xs: PyTree) -> tuple[int, int, int]:
  """B, T and H."""
  return jax.tree.leaves(xs)[0].shape[:3]


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


# One estimate of the transcendental unit each.
_TRANSCENDENTAL = ('exp', 'log', 'log1p', 'tanh', 'logistic', 'erf', 'sqrt')


def _work(jaxpr) -> tuple[int, int]:
  """FLOPs of the products, and transcendentals, of a jaxpr."""
  flops = transcendentals = 0
  for eqn in jaxpr.eqns:
    size = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      flops += 2 * size * math.prod(shape[i] for i in contracted)
    elif eqn.primitive.name in _TRANSCENDENTAL:
      transcendentals += size
    for inner in eqn.params.values():
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        more = _work(inner)
        flops, transcendentals = flops + more[0], transcendentals + more[1]
  return flops, transcendentals


def _cost(f, blocks, repeats: int, *arrays) -> pl.CostEstimate:
  """What a block's function computes times the blocks; bytes of what is moved.

  XLA plans around a kernel by this; (`pl.estimate_cost` cannot read every
  power).
  """
  flops, transcendentals = _work(jax.make_jaxpr(f)(*blocks).jaxpr)
  moved = sum(
      math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
      for x in jax.tree.leaves(arrays)
  )
  return pl.CostEstimate(
      flops=flops * repeats,
      transcendentals=transcendentals * repeats,
      bytes_accessed=moved,
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
  of_params, of_carry = (_matrices(plan, x, b) for x in (params, carry))
  kept_blocks = blocks[-1] if differentiated else ()
  of_kept = jax.tree.map(
      lambda x: layouts.Matrix(plan, x.shape[1:]), kept_blocks
  )
  kept_shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((tiles, b, h, *x.shape[1:]), x.dtype),
      kept_blocks,
  )
  of_xs, of_marks, of_ys = (_tokens(plan, x) for x in (xs, marks, ys))
  saved = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((tiles, *x.shape), x.dtype),
      carry if save else (),
  )

  def kernel(params, carry, xs, marks, state, ys, saved, kept):
    """state: the carry, resident. First tile: it is what was given."""

    @pl.when(pl.program_id(2) == 0)
    def _():
      jax.tree.map(lambda new, old: _copy(new, old), state, carry)

    now = _load(of_carry, state)
    if save:
      _store(of_carry, saved, now)
    inputs = _load(of_xs, xs)
    matrices = keep(inputs) if keep else ()
    if differentiated:
      _store(of_kept, kept, matrices)
    new, out = step(
        _spread(of_params, _load(of_params, params)), now, inputs,
        _load(of_marks, marks), matrices,
    )
    _store(of_carry, state, new)
    _store(of_ys, ys, out)

  now = lambda n: n
  token_specs = lambda tree: jax.tree.map(lambda x: x.spec(now), tree)
  matrix_specs = lambda tree: jax.tree.map(lambda x: x.spec(), tree)
  hbm = lambda tree: jax.tree.map(
      lambda leaf, y: jax.ShapeDtypeStruct(leaf.shape(b, t, h), y.dtype),
      tree, ys,
  )
  last, out, states, kept = pl.pallas_call(
      in_specs=(
          matrix_specs(of_params), matrix_specs(of_carry), token_specs(of_xs),
          token_specs(of_marks),
      ),
      out_specs=(
          matrix_specs(of_carry),
          token_specs(of_ys),
          jax.tree.map(lambda x: x.saved_spec(now), of_carry) if save else (),
          jax.tree.map(lambda x: x.saved_spec(now), of_kept),
      ),
      out_shape=(_shapes(carry), hbm(of_ys), saved, kept_shapes),
      **_call(
          plan, kernel, tiles, sizes, (),
          _cost(
              step, blocks, tiles * (b // plan.rows) * (h // plan.heads),
              params, carry, carry, xs, marks, ys, saved, kept_shapes,
          ),
          'tile_scan_forward',
      ),
  )(
      params, carry, *(
          jax.tree.map(lambda leaf, x: leaf.to_hbm(x), of, tree)
          for of, tree in ((of_xs, xs), (of_marks, marks))
      ),
  )
  out = jax.tree.map(lambda leaf, y: leaf.from_hbm(y), of_ys, out)
  return last, out, states, kept


def backward(step, plan, params, states, xs, marks, kept, dlast, dys):
  """The reverse sweep: gradients of params, of the first carry and of xs."""
  b, t, h = sizes = _sizes(xs)
  tiles = t // plan.tile
  recompute = plan.save_states == 'recompute'
  of_params, of_carry = _matrices(plan, params, b), _matrices(plan, dlast, b)
  of_xs, of_marks, of_dys = (_tokens(plan, x) for x in (xs, marks, dys))
  of_kept = jax.tree.map(lambda x: layouts.Matrix(plan, x.shape[3:]), kept)
  blocks = _blocks(plan, params, dlast, xs, marks)
  blocks.append(jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          (plan.rows * plan.heads, *x.shape[3:]), x.dtype
      ),
      kept,
  ))

  def kernel(
      params, states, xs, marks, kept, dlast, dys, dparams, dcarry, dxs, *stack
  ):
    """dcarry, dparams: resident. stack: carries of all tiles in VMEM."""
    n = pl.program_id(2)
    constants = _load(of_params, params)
    inputs, flags = _load(of_xs, xs), _load(of_marks, marks)
    matrices = _load(of_kept, kept)

    @pl.when(n == 0)
    def _():
      jax.tree.map(lambda new, old: _copy(new, old), dcarry, dlast)
      jax.tree.map(_zero, dparams)

    def pull(now):
      def f(params, carry, xs):
        return step(_spread(of_params, params), carry, xs, flags, matrices)

      _, vjp = jax.vjp(f, constants, now, inputs)
      dp, dc, dx = vjp((_load(of_carry, dcarry), _load(of_dys, dys)))
      _store(of_carry, dcarry, dc)
      jax.tree.map(_add, dparams, dp)
      _store(of_xs, dxs, dx)

    if not recompute:
      pull(_load(of_carry, states))
      return
    (stack,) = stack

    @pl.when(n == 0)
    def _():
      jax.tree.map(
          lambda s, leaf, x: s.__setitem__(0, leaf.load(x)),
          stack, of_carry, states,
      )

    @pl.when(n < tiles - 1)
    def _():
      now = jax.tree.map(lambda s: s[n], stack)
      new, _ = step(
          _spread(of_params, constants), now, inputs, flags, matrices
      )
      jax.tree.map(lambda s, x: s.__setitem__(n + 1, x), stack, new)

    @pl.when(n >= tiles)
    def _():
      pull(jax.tree.map(lambda s: s[2 * tiles - 1 - n], stack))

  if recompute:
    back = lambda n: jnp.where(n < tiles, tiles - 1, 2 * tiles - 1 - n)
    both = lambda n: jnp.where(n < tiles, n, 2 * tiles - 1 - n)
    scratch = jax.tree.map(
        lambda x: pltpu.VMEM((tiles, plan.rows * plan.heads, *x.shape[2:]),
                             x.dtype),
        dlast,
    )
    scratch = (scratch,)
  else:
    back = both = lambda n: tiles - 1 - n
    scratch = ()
  token_specs = lambda tree, when: jax.tree.map(lambda x: x.spec(when), tree)
  matrix_specs = lambda tree, out=False: jax.tree.map(
      lambda x: x.spec(out), tree
  )
  of_states = (
      matrix_specs(of_carry) if recompute
      else jax.tree.map(lambda x: x.saved_spec(back), of_carry)
  )
  dparams_shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          (b // plan.rows if x.shape[0] == 1 < b else b, *x.shape[1:]),
          jnp.float32,
      ),
      params,
  )
  dxs_shapes = jax.tree.map(
      lambda leaf, x: jax.ShapeDtypeStruct(leaf.shape(b, t, h), x.dtype),
      of_xs, xs,
  )
  rows = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)

  def pulled(params, carry, xs, marks, kept):
    out, vjp = jax.vjp(lambda *a: step(*a, marks, kept), params, carry, xs)
    return vjp(out)

  dparams, dcarry, dxs = pl.pallas_call(
      in_specs=(
          matrix_specs(of_params), of_states, token_specs(of_xs, both),
          token_specs(of_marks, both),
          jax.tree.map(lambda x: x.saved_spec(both), of_kept),
          matrix_specs(of_carry),
          token_specs(of_dys, back),
      ),
      out_specs=(
          matrix_specs(of_params, True), matrix_specs(of_carry),
          token_specs(of_xs, back),
      ),
      out_shape=(dparams_shapes, _shapes(dlast), dxs_shapes),
      **_call(
          plan, kernel, (2 if recompute else 1) * tiles, sizes, scratch,
          _cost(
              pulled, jax.tree.map(rows, blocks),
              tiles * (b // plan.rows) * (h // plan.heads),
              params, states, xs, xs, marks, kept, dlast, dlast, dys,
              dparams_shapes,
          ),
          'tile_scan_backward',
      ),
  )(
      params, states, *(
          jax.tree.map(lambda leaf, x: leaf.to_hbm(x), of, tree)
          for of, tree in ((of_xs, xs), (of_marks, marks))
      ), kept, dlast, jax.tree.map(lambda leaf, x: leaf.to_hbm(x), of_dys, dys),
  )
  dparams = jax.tree.map(
      lambda g, x: jnp.sum(g, 0, keepdims=True) if x.shape[0] == 1 < b else g,
      dparams, params,
  )
  dparams = jax.tree.map(lambda g, x: g.astype(x.dtype), dparams, params)
  dxs = jax.tree.map(lambda leaf, g: leaf.from_hbm(g), of_xs, dxs)
  return dparams, dcarry, dxs


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
