"""Recurrences that everything rests on, one folder each."""
