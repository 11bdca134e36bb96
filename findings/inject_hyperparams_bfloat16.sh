#!/usr/bin/env bash
# optax.inject_hyperparams makes AdamW's updates NaN for bfloat16 parameters.
#
# optax 0.2.8, jax 0.10.2.
#
# Expected: the wrapper moves numbers that were constants into the state, where they can
# be scheduled and changed; the optimizer is the same. `hyperparam_dtype` is documented
# as what floats are cast to if it is given.
#
# Seen: if it is not given, floats are cast to the widest dtype of the parameters. If all
# are bfloat16, b2 = 0.999 becomes 1, its bias correction 1 - b2 ** t becomes 0, and the
# first update is 0 / 0. The optimizer without the wrapper steps as it should; with one
# float32 parameter in the tree, or hyperparam_dtype=float32, the wrapped one does too.
#
#   adamw(0.001), gradient 1, first update of a bfloat16 parameter
#     as it is                           -0.000999
#     injected                           nan        b2 = 1.0000
#     injected, a float32 leaf beside    -0.001     b2 = 0.9990
#     injected, hyperparam_dtype=float32 -0.001     b2 = 0.9990
#
# Why it matters: the wrapper is what makes the learning rate readable for a log, so one
# adds it to a loop that works. An optimizer that does not divide by 1 - b2 ** t goes on,
# with other numbers than it was given: b1 = 0.9 is 0.8984.
# (The dtype was reported: github.com/google-deepmind/optax/issues/1414.)
#
# Here: parameters are float32 and nothing is injected: optim/factory.py scales by the
# schedule outside of the optimizer, and train/step.py logs what the schedule says.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import math
import sys

import jax
import jax.numpy as jnp
import optax

narrow = {'w': jnp.ones(4, jnp.bfloat16)}
mixed = narrow | {'other': jnp.ones(4)}


def first_update(tx, params):
  grads = jax.tree.map(jnp.ones_like, params)
  updates, state = tx.update(grads, tx.init(params), params)
  return float(updates['w'][0]), getattr(state, 'hyperparams', {}).get('b2')


injected = optax.inject_hyperparams(optax.adamw)
in_float32 = optax.inject_hyperparams(
    optax.adamw, hyperparam_dtype=jnp.float32
)
cases = {
    'as it is': (optax.adamw(0.001), narrow),
    'injected': (injected(0.001), narrow),
    'injected, a float32 leaf beside': (injected(0.001), mixed),
    'injected, hyperparam_dtype=float32': (in_float32(0.001), narrow),
}
got = {}
print('adamw(0.001), gradient 1, first update of a bfloat16 parameter')
for name, (tx, params) in cases.items():
  got[name], b2 = first_update(tx, params)
  note = '' if b2 is None else f'b2 = {float(b2):.4f}'
  print(f'  {name:34} {got[name]:<10.3g} {note}'.rstrip())

broken = got.pop('injected')
as_stated = math.isnan(broken) and all(
    abs(update + 0.001) < 1e-4 for update in got.values()
)
sys.exit(0 if as_stated else 'changed: this is no longer as stated')
EOF
