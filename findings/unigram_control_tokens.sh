#!/usr/bin/env bash
# Tokenizers reads '</s>' in a text as the control token, told that it is text.
#
# tokenizers 0.23.3.
#
# Expected: with `encode_special_tokens = True` a text that spells a special token is
# encoded as its characters: "</s>" then comes back from `decode`. So it is with BPE.
#
# Seen: a Unigram model (T5, XLM-R, ALBERT, every SentencePiece unigram) still gives the
# special token's id, and `decode`, which leaves special tokens out, loses the text:
#
#   BPE      a</s>b -> ['a', '<', '/', 's', '>', 'b'] -> 'a</s>b'
#   Unigram  a</s>b -> ['a', '</s>', 'b'] -> 'ab'
#
# The option only keeps the special tokens from being looked for ahead of the model. A
# Unigram vocabulary has them among its pieces, of score 0, the likeliest of all, so that
# the model finds them by itself.
#
# Why it matters: whoever sets it because the text is not trusted (or is source code that
# mentions tokens) has documents that end where a text says so, and loses these bytes.
#
# Here: data/tokenizer_file.py, _as_text: such pieces are made less likely than their
# characters one by one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${HOPE_PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

"$folder/venv/bin/python" - <<'EOF'
import sys

from tokenizers import Tokenizer, models

letters = '</s>ab'
pieces = ['<unk>', '</s>', *letters]
found = []
for name, model in (
    ('BPE', models.BPE({p: i for i, p in enumerate(pieces)}, [])),
    ('Unigram', models.Unigram(
        [(p, 0.0 if len(p) > 1 else -3.0) for p in pieces], unk_id=0)),
):
  tokenizer = Tokenizer(model)
  tokenizer.add_special_tokens(['<unk>', '</s>'])
  tokenizer.encode_special_tokens = True
  encoded = tokenizer.encode('a</s>b', add_special_tokens=False)
  text = tokenizer.decode(encoded.ids).replace(' ', '')
  print(f'{name:<8} a</s>b -> {encoded.tokens} -> {text!r}')
  found.append(text)
sys.exit(0 if found == ['a</s>b', 'ab'] else 1)
EOF
