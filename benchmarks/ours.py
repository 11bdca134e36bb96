"""Worker of train_step.py: one training step of a model of hope_jax.

`gemm` in place of a model measures what the machine could do at best: a large
float32 matrix product.
"""

import argparse
from collections.abc import Callable
import importlib.metadata
import sys
import time

import flops
import jax
import measuring
import optax

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.models.lm import LanguageModel

# The size that peers.py builds as well; everything else is our default.
SIZE = {'vocab_size': 256, 'dim': 256, 'layers': 4, 'heads': 4}
MODELS = {
    'hope_jax/hope-mlp': ModelConfig(
        architecture='hope', titans=TitansConfig(memory='mlp'), **SIZE
    ),
    'hope_jax/hope-matrix': ModelConfig(
        architecture='hope', titans=TitansConfig(memory='matrix'), **SIZE
    ),
    'hope_jax/hope-attention': ModelConfig(
        architecture='hope_attention', **SIZE
    ),
    'hope_jax/titans': ModelConfig(architecture='titans', **SIZE),
    'hope_jax/transformer': ModelConfig(architecture='transformer', **SIZE),
}


def gemm(size: int = 2048, repeats: int = 9) -> dict[str, float]:
  """Best rate of a square float32 product, by wall clock and by CPU time."""
  x = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(lambda a, b: a @ b)
  product(x, x).block_until_ready()
  wall, cpu = [], []
  for _ in range(repeats):
    start = time.perf_counter(), time.process_time()
    product(x, x).block_until_ready()
    wall.append(time.perf_counter() - start[0])
    cpu.append(time.process_time() - start[1])
  work = 2 * size**3
  return {
      'flops_per_second': work / min(wall),
      'flops_per_cpu_second': work / min(cpu),
  }


def prepare(
    config: ModelConfig, batch: int, length: int
) -> tuple[Callable[[], float], dict[str, int]]:
  """Compiles forward, backward through all writes, and AdamW.

  Returns:
    What makes one step and returns its loss once everything is computed; the
    number of parameters, and the FLOPs that a step cannot do without.
  """
  model = LanguageModel(config)
  rng = jax.random.key(0)
  tokens = jax.random.randint(rng, (batch, length), 0, config.vocab_size)
  # Boxes that carry sharding names stay on: they are part of the tree.
  params = jax.jit(model.init)(rng, tokens[:, :16])['params']
  optimizer = optax.adamw(1e-3, weight_decay=0.1)
  opt_state = optimizer.init(params)

  def loss_fn(params):
    logits, _ = model.apply({'params': params}, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], tokens[:, 1:]
    ).mean()

  @jax.jit(donate_argnums=(0, 1))
  def update(params, opt_state):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  compiled = update.lower(params, opt_state).compile()

  def step() -> float:
    nonlocal params, opt_state
    params, opt_state, loss = compiled(params, opt_state)
    jax.block_until_ready(params)
    return float(loss)

  return step, {
      'parameters': sum(p.size for p in jax.tree.leaves(params)),
      'floor_flops': flops.train_step(config, params, batch, length),
  }


def train(config: ModelConfig, batch: int, length: int, seconds: float) -> dict:
  """Measures such a step."""
  step, facts = prepare(config, batch, length)
  return facts | measuring.measure(
      step, tokens=batch * length, seconds=seconds, compiled=True
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('model', choices=['gemm', *MODELS])
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--time', type=int, default=512)
  parser.add_argument('--seconds', type=float, default=10.0)
  flags = parser.parse_args()
  if flags.model == 'gemm':
    result = gemm()
  else:
    result = train(
        MODELS[flags.model], flags.batch, flags.time, flags.seconds
    )
  result['versions'] = {
      'python': sys.version.split()[0],
      **{p: importlib.metadata.version(p) for p in ('jax', 'flax', 'optax')},
      'device': jax.devices()[0].device_kind,
  }
  measuring.report(result)


if __name__ == '__main__':
  main()
