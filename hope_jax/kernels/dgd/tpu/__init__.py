"""The recurrence, and any scan over tiles, as kernels for a TPU."""
