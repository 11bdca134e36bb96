#!/usr/bin/env bash
# flax.linen.Embed(dtype=bfloat16) loses the gradient of frequent tokens.
#
# flax 0.12.8, jax 0.10.2, CPU.
#
# Expected: `dtype` is documented as that of the embedding vectors, `param_dtype`
# (float32) as that of the parameters. So the rows that come out are rounded, and the
# gradient of a float32 parameter is a float32 sum; as in Dense, whose product with
# one-hot rows is the same function.
#
# Seen: the table is rounded before the rows are taken, so that the gradient of the
# taking adds rows up in bfloat16, one after the other, and is cast to float32 when
# that is done. A bfloat16 sum of ones stops at 256. nnx.Embed does the same. Dense
# rounds its sum once, at the end: 9984 is 10000 in bfloat16.
#
#   a token seen 100, 1,000 and 10,000 times, each with a gradient of 1:
#     linen.Embed               100    256    256
#     nnx.Embed                 100    256    256
#     linen.Dense of one-hot    100   1000   9984
#     rows first, then cast     100   1000  10000
#   8,192 tokens of 4 kinds, noisy gradients: relative error by kind
#     linen.Embed            0.040 0.046 0.057 0.022
#     rows first, then cast  0.000 0.000 0.000 0.000
#
# Why it matters: in text some tokens are a tenth of each batch. Where their gradients
# are mostly noise the sum is off by some per cent; where they agree it stops growing.
# Parameters, optimizer and the dtype of the gradient all say float32.
#
# Here: models/lm.py takes rows of the float32 table and casts those.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import sys

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

KINDS, WIDTH = 4, 64
embed = nn.Embed(KINDS, WIDTH, dtype=jnp.bfloat16)
dense = nn.Dense(WIDTH, use_bias=False, dtype=jnp.bfloat16)
modular = nnx.Embed(KINDS, WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
graph, _ = nnx.split(modular)
table = jnp.ones((KINDS, WIDTH))


def of_nnx(table, tokens):
  return nnx.merge(graph, nnx.State({'embedding': nnx.Param(table)}))(tokens)


ways = {
    'linen.Embed': lambda table, tokens: embed.apply(
        {'params': {'embedding': table}}, tokens
    ),
    'nnx.Embed': of_nnx,
    'linen.Dense of one-hot': lambda table, tokens: dense.apply(
        {'params': {'kernel': table}}, jax.nn.one_hot(tokens, KINDS)
    ),
    'rows first, then cast': lambda table, tokens: table[tokens].astype(
        jnp.bfloat16
    ),
}


def gradient(way, tokens, weights):
  # Arguments all, so that nothing is worked out while it is compiled.
  def loss(table, tokens, weights):
    return jnp.sum(ways[way](table, tokens).astype(jnp.float32) * weights)

  result = jax.jit(jax.grad(loss))(table, tokens, weights)
  assert result.dtype == jnp.float32
  return result


sums = {}
print('a token seen 100, 1,000 and 10,000 times, each with a gradient of 1:')
for way in ways:
  sums[way] = [
      float(gradient(way, jnp.zeros(n, jnp.int32), 1.0)[0, 0])
      for n in (100, 1000, 10000)
  ]
  print(f'  {way:22}', *(f'{s:6.0f}' for s in sums[way]))

random = np.random.default_rng(0)
tokens = random.choice(KINDS, p=[0.2, 0.3, 0.4, 0.1], size=8192)
weights = jnp.array(random.normal(0.1, 1, (8192, WIDTH)), jnp.bfloat16)
weights = weights.astype(jnp.float32)
exact = np.stack([
    np.sum(np.asarray(weights, np.float64)[tokens == kind], axis=0)
    for kind in range(KINDS)
])
errors = {}
print('8,192 tokens of 4 kinds, noisy gradients: relative error by kind')
for way in ('linen.Embed', 'rows first, then cast'):
  wrong = np.asarray(gradient(way, jnp.array(tokens), weights)) - exact
  errors[way] = np.linalg.norm(wrong, axis=1) / np.linalg.norm(exact, axis=1)
  print(f'  {way:22}', *(f'{e:.3f}' for e in errors[way]))

as_stated = (
    sums['linen.Embed'] == sums['nnx.Embed'] == [100, 256, 256]
    and sums['rows first, then cast'] == [100, 1000, 10000]
    and errors['linen.Embed'].min() > 0.01
    and errors['rows first, then cast'].max() < 1e-4
)
sys.exit(0 if as_stated else 'changed: this is no longer as stated')
EOF
