"""The training loop, its step, its checkpoints and metrics."""
