"""Nested Learning and Hope in JAX (arXiv 2512.24695)."""
