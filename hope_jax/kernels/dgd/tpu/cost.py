"""What a kernel costs, so that XLA can plan around it."""

import math

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

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


def cost_of(f, blocks, repeats: int, *arrays) -> pl.CostEstimate:
  """What a block's function computes times the blocks; bytes of what is moved.

  XLA plans around a kernel by this; (`pl.estimate_cost` cannot read every
  power).

  Args:
    f: what a block computes.
    blocks: shapes of its arguments.
    repeats: how many blocks there are.
    *arrays: what is moved between HBM and VMEM.
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
