"""Evaluations: a model -> a dict of numbers. Nothing here trains.

- `text.py`: bits per byte of held-out text.
- `labelled.py`: right answers on a task whose positions carry labels.
- `second_reading.py`: what the memory is worth at a second reading.
- `text_baselines.py`: what counting and compressors make of the same text.
"""
