"""Optimizers: optax transformations, and the levels they act on."""
