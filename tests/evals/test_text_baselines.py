"""The n-gram and compressor baselines, against plain counting and the shell."""

import collections
import math
import shutil
import subprocess

import numpy as np
import pytest

from hope_jax import data
from hope_jax.config import DataConfig
from hope_jax.evals import text_baselines


def _oracle(train, heldout):
  """Interpolated n-grams with dictionaries, a byte at a time."""
  padded = b'\n\n' + train
  places = range(2, len(padded))
  grams = [
      collections.Counter(padded[i - n : i + 1] for i in places)
      for n in (0, 1, 2)
  ]
  contexts = [
      collections.Counter(padded[i - n : i] for i in places) for n in (1, 2)
  ]
  bits = [], []
  padded = b'\n\n' + heldout
  for i in range(2, len(padded)):
    p = (grams[0][padded[i : i + 1]] + 1) / (len(train) + 256)
    for n in (1, 2):
      count = grams[n][padded[i - n : i + 1]]
      p = (count + p) / (contexts[n - 1][padded[i - n : i]] + 1)
      bits[n - 1].append(-math.log2(p))
  return bits


def test_ngrams_match_plain_counting():
  """A failure means that the numbers to beat are wrong."""
  rng = np.random.default_rng(0)
  train = bytes(rng.choice(list(b'abc \n'), 500).tolist())
  heldout = b'abba\xff\x00 cab\n' * 3
  for got, want in zip(
      text_baselines.ngram_bits(train, heldout), _oracle(train, heldout)
  ):
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_ngrams_are_distributions():
  """A failure means code lengths that no code could reach."""
  train = b'the cat sat on the mat' * 4
  for context in (b'th', b't\xff', b'\xfe\xff'):
    text = b''.join(context + bytes([c]) for c in range(256))
    for bits in text_baselines.ngram_bits(train, text):
      # Every third byte is one of the 256 that may follow the context.
      np.testing.assert_allclose(np.sum(2.0 ** -bits[2::3]), 1, rtol=1e-12)


@pytest.mark.parametrize('tool', ['gzip', 'xz'])
def test_compressors_match_the_programs(tool):
  """A failure means that 'gzip -9' in a report is not what gzip -9 does."""
  if not shutil.which(tool):
    pytest.skip(f'no program {tool}')
  text = data.heldout_text(DataConfig())[:200_000]
  out = subprocess.run(
      [tool, '-9', '-c'], input=text, capture_output=True, check=True
  ).stdout
  bits = text_baselines.baselines(b'', text)[f'{tool} -9']
  # Some systems' zlib finds other matches than the program, by a percent.
  assert bits == pytest.approx(8 * len(out) / len(text), rel=2e-2)


def test_standard_library_figures():
  """A failure means that the default corpus, or a baseline on it, has changed.

  Python 3.11.7: bigram 3.55, trigram 2.50, gzip 1.91, xz 1.52. Other versions
  have other files, hence the wide bounds.
  """
  config = DataConfig()
  result = text_baselines.baselines(
      data.train_text(config), data.heldout_text(config)
  )
  assert list(result) == ['bigram', 'trigram', 'gzip -9', 'xz -9']
  assert 3.2 < result['bigram'] < 3.9
  assert 2.2 < result['trigram'] < 2.8
  assert 1.5 < result['gzip -9'] < 2.2
  assert 1.2 < result['xz -9'] < result['gzip -9']


def test_nothing_to_measure():
  """A failure means a division by zero instead of a reason."""
  with pytest.raises(ValueError, match='heldout must not be empty'):
    text_baselines.baselines(b'abc', b'')
