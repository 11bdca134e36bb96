"""Evaluations, each a function from a model to a dict of numbers."""
