"""Text in, packed batches out. The only folder that imports grain.

- `sources.py`: where documents come from, and which of them are held out.
- `tokenizer.py`: bytes, or a Hugging Face `tokenizers` file.
- `packing.py`: documents into rows of one length, with segment ids.
- `pipeline.py`: the three joined; endless training batches, held-out batches.
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
