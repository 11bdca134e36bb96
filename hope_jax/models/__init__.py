"""Flax modules that declare parameters and call `nested`."""
