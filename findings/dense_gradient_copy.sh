#!/usr/bin/env bash
# XLA's CPU compiler copies a gradient, transposed, for a Dense on [batch, time, width].
#
# jax and jaxlib 0.10.2 (XLA), flax 0.12.8; CPU, x86-64.
#
# Expected: y = x @ W of x [B, T, D] and of x as a matrix [B * T, D] are one product,
# and so are their gradients: no number moves between the two shapes. Nothing says that
# they are compiled differently.
#
# Seen: for the gradient of W, `x @ W` on three axes first writes a transposed copy of
# the whole gradient of y, [F, B, T]; on two axes the same product reads it where it
# is. The results are equal, bit for bit. flax.linen.Dense makes the first kind.
#
#   transposes and copies in what is compiled for the two gradients, float32
#   (x [8, 256, 256], W [256, 1024]):
#     x @ W                      transpose f32[1024,8,256] copy f32[1024,8,256]
#     flax.linen.Dense           transpose f32[1024,8,256] copy f32[1024,8,256]
#     reshaped to two axes       none
#   gradients equal, bit for bit: True
#
# Why it matters: the gradient of y is as large as the activations, and is written and
# read once more in each Dense of each layer, at each step.
#
# Here: `Dense` in models/layers.py makes two axes of its input, and three of the result.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import re
import sys

from flax import linen as nn
import jax

B, T, D, F = 8, 256, 256, 1024
keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (B, T, D))
w = jax.random.normal(keys[1], (D, F))
dy = jax.random.normal(keys[2], (B, T, F))
dense = nn.Dense(F, use_bias=False)
products = {
    'x @ W': lambda x, w: x @ w,
    'flax.linen.Dense': lambda x, w: dense.apply({'params': {'kernel': w}}, x),
    'reshaped to two axes': lambda x, w: (x.reshape(-1, D) @ w).reshape(B, T, F),
}

moved, gradients = {}, {}
print('transposes and copies in what is compiled for the two gradients, float32')
print(f'(x [{B}, {T}, {D}], W [{D}, {F}]):')
for name, product in products.items():
  backward = jax.jit(
      lambda x, w, dy, product=product: jax.vjp(product, x, w)[1](dy)
  )
  text = backward.lower(x, w, dy).compile().as_text()
  found = re.findall(r' = (\w+\[[\d,]*\])\S* (transpose|copy)\(', text)
  moved[name] = [f'{op} {shape}' for shape, op in found]
  gradients[name] = backward(x, w, dy)
  print(f'  {name:26}', *moved[name] or ['none'])
same = all(
    bool((a == b).all())
    for a, b in zip(gradients['x @ W'], gradients['reshaped to two axes'])
)
print('gradients equal, bit for bit:', same)

whole = f'copy f32[{F},{B},{T}]'
as_stated = (
    whole in moved['x @ W']
    and whole in moved['flax.linen.Dense']
    and not moved['reshaped to two axes']
    and same
)
sys.exit(0 if as_stated else 'changed: this is no longer as stated')
EOF
