"""Training: the state, one pure step, the loop, checkpoints, metrics."""
