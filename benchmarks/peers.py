"""Worker of train_step.py: one training step of another package, in PyTorch.

Runs inside the environment of that package, so it imports nothing of hope_jax.
Each builder returns (parameters, step): the number of trained parameters, and a
function that does forward, backward and AdamW and returns the loss.
"""

import argparse
from collections.abc import Callable
import importlib.metadata
import os
import pathlib
import sys

import measuring
import torch
from torch.nn import functional

VOCAB, DIM, LAYERS, HEADS = 256, 256, 4, 4
CMS_PERIODS = (16, 64, 256)
Step = Callable[[], float]


def _adamw(model: torch.nn.Module) -> torch.optim.AdamW:
  return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def _next_token_loss(
    logits: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
  return functional.cross_entropy(
      logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1)
  )


def nested_learning(
    variant: str, tokens: torch.Tensor, *, writes: bool = True
) -> tuple[torch.nn.Module, Step]:
  """A model of the package `nested-learning` under its own two-pass step.

  Its packaged `pilot_selfmod_paper_faithful`, at our size: memories written in
  chunks of 8 tokens, the main one of 64. Two choices are made in its favour.
  Of its two training modes this is the faster: one pass for the outer gradient,
  and one more without gradients, in which the memories are written; the other
  does both for every few tokens. And its CMS levels have the periods of
  `CMS_PERIODS` instead of 1, 4, 32 and 128, the first of which would be a
  Python loop over tokens.

  Args:
    variant: its name of an architecture.
    tokens: int64 [B, T].
    writes: whether the second pass, with the writes, is done.

  Returns:
    The model and its step.
  """
  import nested_learning as package
  from nested_learning import training
  from omegaconf import OmegaConf

  folder = pathlib.Path(package.__file__).parent / 'configs'
  config = OmegaConf.merge(
      OmegaConf.load(folder / 'pilot.yaml'),
      OmegaConf.load(folder / 'pilot_paper_faithful.yaml'),
      OmegaConf.load(folder / 'pilot_selfmod_paper_faithful.yaml'),
  ).model
  config.update(
      vocab_size=VOCAB, dim=DIM, num_layers=LAYERS, heads=HEADS,
      block_variant=variant,
      cms_levels=[
          {'name': f'level_{i}', 'update_period': p, 'optimizer_key': 'cms_opt'}
          for i, p in enumerate(CMS_PERIODS)
      ],
  )
  model = training.build_model_from_cfg(config)
  model.train()
  optimizer = _adamw(model)

  def step() -> float:
    # As in its run_training_loop: fresh memories for every batch of contexts.
    state = model.init_fast_state() if writes else None
    optimizer.zero_grad()
    logits, _, outputs = model.forward_with_block_outputs(
        tokens, fast_state=state
    )
    loss = _next_token_loss(logits, tokens)
    signals = None
    if writes:
      signals = training._compute_layer_teach_signals(loss, outputs)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    if writes:
      with torch.no_grad():
        model(tokens, teach_signals=signals, fast_state=state)
    return loss.item()

  return model, step


def titans_pytorch(tokens: torch.Tensor) -> tuple[torch.nn.Module, Step]:
  """Memory as context of `titans-pytorch`, an MLP memory in every layer.

  The segment and memory tokens of its README, at our size.
  """
  from titans_pytorch import MemoryAsContextTransformer, MemoryMLP

  model = MemoryAsContextTransformer(
      num_tokens=VOCAB,
      dim=DIM,
      depth=LAYERS,
      heads=HEADS,
      dim_head=DIM // HEADS,
      segment_len=128,
      num_persist_mem_tokens=4,
      num_longterm_mem_tokens=16,
      neural_memory_model=MemoryMLP(dim=DIM // HEADS, depth=2),
      neural_memory_kwargs={'dim_head': DIM // HEADS, 'heads': HEADS},
  )
  # Some of its parameters are expanded views, which no optimizer can write to.
  for parameter in model.parameters():
    parameter.data = parameter.data.clone(
        memory_format=torch.contiguous_format
    )
  optimizer = _adamw(model)

  def step() -> float:
    optimizer.zero_grad()
    loss = model(tokens, return_loss=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  return model, step


BUILDERS = {
    'nested-learning/hope': lambda t: nested_learning('hope_selfmod', t),
    'nested-learning/hope-no-writes': lambda t: nested_learning(
        'hope_selfmod', t, writes=False
    ),
    'nested-learning/hope-attention': lambda t: nested_learning(
        'hope_attention', t
    ),
    'nested-learning/transformer': lambda t: nested_learning(
        'transformer', t, writes=False
    ),
    'titans-pytorch/mac': titans_pytorch,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('model', choices=BUILDERS)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--time', type=int, default=512)
  parser.add_argument('--seconds', type=float, default=10.0)
  flags = parser.parse_args()

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  tokens = torch.randint(0, VOCAB, (flags.batch, flags.time))
  model, step = BUILDERS[flags.model](tokens)
  result = measuring.measure(
      step, tokens=tokens.numel(), seconds=flags.seconds, compiled=False
  )
  package = flags.model.split('/')[0]
  result['parameters'] = sum(p.numel() for p in model.parameters())
  result['versions'] = {
      'python': sys.version.split()[0],
      'torch': torch.__version__,
      package: importlib.metadata.version(package),
  }
  measuring.report(result)


if __name__ == '__main__':
  main()
