"""The recurrence and whole training steps on one accelerator.

    python benchmarks/accelerator.py                 everything, a few minutes
    python benchmarks/accelerator.py --parts steps --only hope
    python benchmarks/accelerator.py --help

Beside the recurrence stands flash-linear-attention's `chunk_gated_delta_rule`,
where it and PyTorch are installed and see the same GPU: the same function, so
its outputs are compared as well. README.md says what the columns mean.
"""

import argparse
from collections.abc import Iterator
from concurrent import futures
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import statistics
import time

# Another package shares the memory of the device.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import measuring
import numpy as np
import ours

from hope_jax.config import ModelConfig, TitansConfig
from hope_jax.kernels.dgd.api import dgd_recurrence
from hope_jax.studies import machine

RESULTS = pathlib.Path(__file__).parent / 'results' / 'accelerator.json'
# How long each recurrence is measured.
SECONDS = 0.5

# What is trained: a model as large as GPT-2's smallest, and those of
# experiments/needles.py, with its batch and a larger one.
MEDIUM = {
    'vocab_size': 32_000, 'dim': 768, 'layers': 12, 'heads': 12,
    'dtype': 'bfloat16',
}
SMALL = {
    'vocab_size': 260, 'dim': 64, 'layers': 2, 'heads': 2, 'remat': 'none',
}
MATRIX = TitansConfig(memory='matrix')
CHUNK_64 = TitansConfig(memory='matrix', chunk=64, projection_chunk=64)
STEPS = {
    'medium/transformer': (ModelConfig('transformer', **MEDIUM), 8, 2048),
    'medium/hope-attention': (ModelConfig('hope_attention', **MEDIUM), 8, 2048),
    'medium/deltanet': (ModelConfig('deltanet', **MEDIUM), 8, 2048),
    'medium/titans': (ModelConfig('titans', **MEDIUM), 8, 2048),
    'medium/hope-matrix': (
        ModelConfig('hope', titans=MATRIX, **MEDIUM), 8, 2048
    ),
    'medium/hope-matrix-64': (
        ModelConfig('hope', titans=CHUNK_64, **MEDIUM), 8, 2048
    ),
    'medium/hope-mlp': (ModelConfig('hope', **MEDIUM), 8, 2048),
    'small/transformer': (ModelConfig('transformer', **SMALL), 2, 1024),
    'small/transformer-32': (ModelConfig('transformer', **SMALL), 32, 1024),
    'small/hope-matrix': (
        ModelConfig('hope', titans=MATRIX, **SMALL), 2, 1024
    ),
    'small/hope-matrix-32': (
        ModelConfig('hope', titans=MATRIX, **SMALL), 32, 1024
    ),
}


def seconds_of(run, wait) -> float:
  """Median seconds of a call; as many calls as fit, `wait` after each batch.

  Calls are queued, so that starting one does not count where it is shorter than
  the call before it.
  """
  wait(run())
  start = time.perf_counter()
  wait(run())
  count = max(1, min(50, int(SECONDS / 5 / (time.perf_counter() - start))))
  means = []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(count):
      result = run()
    wait(result)
    means.append((time.perf_counter() - start) / count)
  return statistics.median(means)


def ceilings() -> dict[str, float]:
  """What the device does at best: a large product, a large copy."""
  found = {}
  for dtype in ('bfloat16', 'float32'):
    x = jax.random.normal(jax.random.key(0), (8192, 8192), dtype)
    product = functools.partial(jax.jit(jnp.matmul), x, x)
    spent = seconds_of(product, jax.block_until_ready)
    found[f'{dtype}_flops_per_second'] = 2 * 8192**3 / spent
  x = jnp.ones(2**29, jnp.float32)
  negate = jax.jit(jnp.negative)
  spent = seconds_of(lambda: negate(x), jax.block_until_ready)
  return found | {'bytes_per_second': 2 * x.nbytes / spent}


def inputs(width: int, batch: int, length: int, heads: int) -> list[np.ndarray]:
  """q, k, u, eta, log alpha, as float32; contractive, as in training."""
  rng = np.random.default_rng(0)
  q, k, u = rng.normal(size=(3, batch, length, heads, width))
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  alpha = rng.uniform(0.9, 1, (batch, length, heads))
  eta = alpha * rng.uniform(0, 1, alpha.shape)
  return [x.astype(np.float32) for x in (q, k, u, eta, np.log(alpha))]


def our_recurrence(arrays, precision: str, tile: int):
  """Forward, and forward with all gradients: compiled, with their arguments."""
  kind = {'bf16': jnp.bfloat16, 'float32': jnp.float32}[precision]
  args = [jnp.asarray(x, kind) for x in arrays[:3]]
  args += [jnp.asarray(x) for x in arrays[3:]]

  def forward(*args):
    return dgd_recurrence(*args, read='post', precision=precision, tile=tile)[0]

  def both(*args):
    out, pull = jax.vjp(forward, *args)
    return out, pull(jnp.ones_like(out))

  return [
      functools.partial(jax.jit(f).lower(*args).compile(), *args)
      for f in (forward, both)
  ]


def peer_recurrence(arrays):
  """The same of flash-linear-attention, in bfloat16."""
  # What need not be installed.
  from fla.ops.gated_delta_rule import chunk_gated_delta_rule
  import torch

  q, k, u, eta, log_alpha = (torch.tensor(x, device='cuda') for x in arrays)
  # S = alpha S (I - beta k k^T) + beta v k^T, so eta = alpha beta.
  alpha = log_alpha.exp()
  args = [x.bfloat16() for x in (q, k, u * alpha[..., None], eta / alpha)]
  args = [x.detach().requires_grad_() for x in (*args[:3], log_alpha, args[3])]

  def forward():
    return chunk_gated_delta_rule(*args, scale=1.0)[0]

  def both():
    out = forward()
    torch.autograd.grad(out, args, torch.ones_like(out))
    return out

  def alone():
    with torch.no_grad():
      return forward()

  return [alone, both]


def peer_wait(_) -> None:
  """Until all that PyTorch has queued is done."""
  import torch

  torch.cuda.synchronize()


def recurrence_row(programs, wait, arrays, name, peaks, right) -> dict:
  """Times of forward and both, in nanoseconds a token and head."""
  forward, both = (seconds_of(f, wait) for f in programs)
  out = programs[0]()
  if not isinstance(out, jax.Array):
    out = out.float().cpu().numpy()
  difference = np.linalg.norm(np.asarray(out, np.float32) - right)
  # q, k, u and two gates read, o written; backward the four, do and the gates
  # read, and the gradients of all but o written.
  batch, length, heads, width = arrays[0].shape
  itemsize = 4 if 'float32' in name else 2
  floors = [
      1e9 * (itemsize * width * vectors + 4 * gates) / peaks['bytes_per_second']
      for vectors, gates in ((4, 2), (11, 6))
  ]
  tokens = batch * length * heads
  return {
      'd': width,
      'form': name,
      'forward_ns': round(1e9 * forward / tokens, 3),
      'both_ns': round(1e9 * both / tokens, 3),
      'floor_forward_ns': round(floors[0], 3),
      'floor_both_ns': round(floors[1], 3),
      'difference': float(f'{difference / np.linalg.norm(right):.2e}'),
  }


def recurrences(peaks, batch=4, length=8192, heads=16) -> Iterator[dict]:
  """Ours in each form, and the peer's; 'difference' is from the serial form."""
  for width in (64, 128):
    arrays = inputs(width, batch, length, heads)
    right = np.asarray(
        dgd_recurrence(*arrays, read='post', implementation='reference')[0]
    )
    forms = {
        f'{precision}, tile {tile}': functools.partial(
            our_recurrence, arrays, precision, tile
        )
        for precision in ('float32', 'bf16')
        for tile in (32, 64, 128)
    }
    waits = dict.fromkeys(forms, jax.block_until_ready)
    with futures.ThreadPoolExecutor(len(forms)) as pool:
      made = {name: pool.submit(form) for name, form in forms.items()}
      futures.wait(made.values())
      peer = 'flash-linear-attention'
      made[peer] = pool.submit(peer_recurrence, arrays)
      waits[peer] = peer_wait
    for name, programs in made.items():
      try:
        row = recurrence_row(
            programs.result(), waits[name], arrays, name, peaks, right
        )
      except Exception as error:
        row = {'d': width, 'form': name, 'error': complaint(error)}
      print(row, flush=True)
      yield row


def complaint(error: Exception) -> str:
  """One line of a row that could not be measured."""
  return f'{type(error).__name__}: {error}'[:300]


def training_steps(names, peaks, seconds: float) -> Iterator[dict]:
  """Rows of whole training steps: forward, backward and AdamW."""

  def compiled(name):
    start = time.perf_counter()
    return ours.prepare(*STEPS[name]), time.perf_counter() - start

  # Compiled side by side, measured one by one after all are compiled.
  with futures.ThreadPoolExecutor(len(names)) as pool:
    programs = {name: pool.submit(compiled, name) for name in names}
  for name in names:
    config, batch, length = STEPS[name]
    row = {'model': name}
    try:
      (step, facts), spent = programs[name].result()
      row |= facts | {'compile_seconds': round(spent, 1)}
      row |= measuring.measure(
          step, tokens=batch * length, seconds=seconds, compiled=True
      )
    except Exception as error:
      row['error'] = complaint(error)
      print(row, flush=True)
      yield row
      continue
    rate = row['floor_flops'] / row['seconds']
    row['of_peak'] = rate / peaks[f'{config.dtype}_flops_per_second']
    # Of the host, where the work is not.
    del row['peak_rss_bytes'], row['tokens_per_cpu_second']
    print(
        f'{name:24} {row["parameters"] / 1e6:7.2f} M'
        f' {1e3 * row["seconds"]:9.1f} ms'
        f' {row["tokens_per_second"]:10.0f} tok/s'
        f' {100 * row["of_peak"]:5.1f} % of peak, compiled in {spent:.0f} s',
        flush=True,
    )
    yield row


def versions() -> dict[str, str]:
  """Of what is compared, as far as it is installed."""
  found = {}
  for name in ('torch', 'triton', 'fla-core'):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      '--parts', nargs='+', default=['recurrence', 'steps'],
      choices=['recurrence', 'steps'], help='default: both',
  )
  parser.add_argument(
      '--only', nargs='+', metavar='PART', default=[''],
      help='training steps whose name contains one of these: '
      + ', '.join(STEPS),
  )
  parser.add_argument(
      '--seconds', type=float, default=3.0,
      help='measure each training step for this long (default: 3)',
  )
  parser.add_argument(
      '--output', type=pathlib.Path, default=RESULTS,
      help=f'JSON file to write (default: {RESULTS})',
  )
  flags = parser.parse_args()
  names = [n for n in STEPS if any(part in n for part in flags.only)]
  if not names:
    parser.error(f'--only matches none of: {", ".join(STEPS)}')
  report = {
      'date': datetime.date.today().isoformat(),
      'machine': machine.describe() | versions(),
      'ceilings': ceilings(),
  }
  print({name: f'{rate:.3g}' for name, rate in report['ceilings'].items()})
  flags.output.parent.mkdir(parents=True, exist_ok=True)
  for part in flags.parts:
    report[part] = []
    rows = (
        recurrences(report['ceilings'])
        if part == 'recurrence'
        else training_steps(names, report['ceilings'], flags.seconds)
    )
    for row in rows:  # what is measured stays, whatever stops the rest
      report[part].append(row)
      flags.output.write_text(json.dumps(report, indent=2) + '\n')
  print(f'written to {flags.output}')


if __name__ == '__main__':
  main()
