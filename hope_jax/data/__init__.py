"""Text in, packed batches out. The only folder that imports grain.

- `sources.py`: where documents come from, and which of them are held out;
  `matching.py`: the files of a glob; `documents.py`, `records.py`, `texts.py`:
  what is in files, records, JSON Lines and Parquet, and read when it is due.
- `tokenizer.py`: bytes, or a Hugging Face `tokenizers` file; `pieces.py`: long
  documents a piece at a time.
- `packing.py`: documents into rows of one length, with segment ids; `rows.py`:
  that as a stage of a stream, and the rows of several sources mixed.
- `pipeline.py`: all joined; endless training batches, held-out batches.
"""

from hope_jax.data.pipeline import (
    heldout_batches,
    heldout_text,
    train_batches,
    train_text,
)
from hope_jax.data.tokenizer import vocab_size

__all__ = [
    'heldout_batches',
    'heldout_text',
    'train_batches',
    'train_text',
    'vocab_size',
]
