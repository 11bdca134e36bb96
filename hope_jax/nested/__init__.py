"""The maths of the paper: pure functions over explicit states."""
