#!/usr/bin/env bash
# jax.random.categorical on bfloat16 logits prefers low ids.
#
# jax 0.10.2, CPU.
#
# Expected: softmax(logits) is what is drawn from. The docstring says so, and of a
# bias only that in float32 events below a probability of 1e-7 suffer.
#
# Seen: the noise that is added to the logits is drawn in their own dtype. In bfloat16
# it has at most 128 values, so that most draws over a vocabulary end in a tie, which
# argmax gives to the lowest id; and it ends near 4.9, so that a class with a
# probability of 5e-5 beside a large one is never drawn. Nothing is raised or logged.
#
#   32,768 equal logits, 2,000 draws: mean id, highest id
#     float32    16193  32767
#     bfloat16     127   1203
#     bfloat16   11537  32567  mode='high'
#   logits 0 and -10, 1,000,000 draws: how often the second
#     float32       39
#     bfloat16       0
#
# Why it matters: a model that computes in bfloat16 often returns bfloat16 logits. Text
# sampled from them, and rewards and losses of sampled text, are of another
# distribution than the model's. mode='high' is better, not right.
#
# Here: models/lm.py adds logits up in float32 whatever model.dtype is
# (preferred_element_type), and infer/generate.py draws from those.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import sys

import jax
import jax.numpy as jnp

key = jax.random.key(0)
means = []
print('32,768 equal logits, 2,000 draws: mean id, highest id')
for dtype, mode in (('float32', None), ('bfloat16', None), ('bfloat16', 'high')):
  ids = jax.random.categorical(
      key, jnp.zeros(32768, dtype), shape=(2000,), mode=mode
  )
  means.append(float(ids.mean()))
  note = f"mode='{mode}'" if mode else ''
  print(f'  {dtype:9} {means[-1]:6.0f} {int(ids.max()):6}  {note}'.rstrip())

counts = []
print('logits 0 and -10, 1,000,000 draws: how often the second')
for dtype in ('float32', 'bfloat16'):
  ids = jax.random.categorical(
      key, jnp.array([0, -10], dtype), shape=(1_000_000,)
  )
  counts.append(int(ids.sum()))
  print(f'  {dtype:9} {counts[-1]:6}')

as_stated = (
    15000 < means[0] < 18000 and means[1] < 1000 and means[2] < 14000
    and counts[0] > 20 and counts[1] == 0
)
sys.exit(0 if as_stated else 'changed: this is no longer as stated')
EOF
