#!/usr/bin/env bash
# zeros_like of a sharded array is sharded, unless the array is closed over under jit.
#
# jax 0.10.2, two CPU devices, a mesh with an explicit axis 'x'.
#
# Expected: with explicit axes the sharding is part of an array's type, and
# `jnp.zeros_like(x)` has the type of x wherever it stands, as `x * 0` has.
#
# Seen, for x of type float32[8@x]:
#
#                                zeros_like(x)   x * 0
#   op by op                     float32[8@x]    float32[8@x]
#   jit, x an argument           float32[8@x]    float32[8@x]
#   jit, x closed over           float32[8]      float32[8@x]
#   cond(p, 2 x, zeros_like(x))  TypeError: branches must have equal output types
#
# `full_like` does the same.
#
# Why it matters: `lax.cond` closes over what its branches use. "An update or none" in
# an optimizer, `cond(due, update, zeros)`, works under jit and fails op by op, and on a
# mesh only.
#
# Here: both branches of optim/frequency.py are given the types of the state.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 \
  "$folder/venv/bin/python" - <<'EOF'
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((2,), ('x',), axis_types=(AxisType.Explicit,))
jax.set_mesh(mesh)
x = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec('x')))


def kinds(make):
  """Types of the result: op by op, with x as an argument, and closed over."""
  return [
      str(jax.typeof(y))
      for y in (make(x), jax.jit(make)(x), jax.jit(lambda: make(x))())
  ]


seen = {
    'zeros_like(x)': kinds(jnp.zeros_like),
    'full_like(x)': kinds(lambda x: jnp.full_like(x, 0.0)),
    'x * 0': kinds(lambda x: x * 0),
}
for name, types in seen.items():
  print(f'{name:14}', *(f'{t:13}' for t in types))
try:
  jax.lax.cond(True, lambda: 2 * x, lambda: jnp.zeros_like(x))
  error = ''
except TypeError as raised:
  error = str(raised).splitlines()[0]
print('cond:', error or 'works')

split, whole = 'float32[8@x]', 'float32[8]'
expected = {
    'zeros_like(x)': [split, split, whole],
    'full_like(x)': [split, split, whole],
    'x * 0': [split, split, split],
}
same = seen == expected and 'equal output types' in error
print('as in the header' if same else 'CHANGED')
sys.exit(0 if same else 1)
EOF
