"""Optax transformations of the outer levels."""
