"""Seeded generators of synthetic tasks. Nothing is downloaded.

A task is examples whose tokens carry labels:

- `labelling.py`: the one form all of them come in, and batches of it.
- `formal_languages.py`: strings, and the legal next symbols at each position.
- `mqar.py`, `mad.py`: recall and copying over abstract tokens.
- `needles.py`: needles in haystacks of text.
"""
