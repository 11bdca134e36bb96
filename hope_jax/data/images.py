"""Labelled images in batches: scikit-learn's digits, or any set of TFDS."""

from collections.abc import Iterator
import itertools
from typing import Any

import grain
import numpy as np

from hope_jax.config import ConfigError, ImageConfig
from hope_jax.data import sources

Batch = dict[str, np.ndarray]

# Of scikit-learn's digits, each fifth is held out.
_HELDOUT = 5


class _Digits:
  """Records of scikit-learn's 8 x 8 digits, in grey levels from 0 to 16."""

  def __init__(self, *, heldout: bool):
    try:
      from sklearn import datasets
    except ImportError as error:
      raise ConfigError(
          f'images.source: digits need scikit-learn ({error}); install the'
          " extra hope_jax[images], or set images.source='tfds'"
      ) from error
    digits: Any = datasets.load_digits()
    chosen = (np.arange(len(digits.images)) % _HELDOUT == 0) == heldout
    # To the full range of a byte, as every other set has it.
    pixels = digits.images[chosen] * (255 / 16)
    self._images = pixels[..., None].round().astype(np.uint8)
    self._labels = digits.target[chosen]

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self._images[index], 'label': self._labels[index]}


def train_batches(config: ImageConfig, seed: int) -> Iterator[Batch]:
  """Yields shuffled batches for ever.

  Args:
    config: what to read.
    seed: of the order.

  Yields:
    'images' float32 [B, S, S, C] in [-1, 1] and 'labels' int32 [B].

  Raises:
    ConfigError: if there is nothing to read, or it does not fit.
  """
  records = _open(config, heldout=False)
  dataset = grain.MapDataset.source(records).seed(seed).shuffle().repeat()
  dataset = dataset.map(lambda record: _example(record, config))
  yield from dataset.batch(config.batch_size)


def heldout_batches(
    config: ImageConfig, limit: int | None = None
) -> Iterator[Batch]:
  """Yields the held-out images once, in order; the last batch may be short."""
  dataset = grain.MapDataset.source(_open(config, heldout=True))
  dataset = dataset.map(lambda record: _example(record, config))
  yield from itertools.islice(dataset.batch(config.batch_size), limit)


def _open(config: ImageConfig, *, heldout: bool) -> Any:
  if config.source == 'digits':
    return _Digits(heldout=heldout)
  path = config.heldout_path if heldout else config.path
  records, label = sources.open_tfds(path)
  if not len(records):
    raise ConfigError(f'images.path: {label} is empty')
  for name in (config.image_field, config.label_field):
    if name not in records[0]:
      raise ConfigError(
          f'images: no field {name!r} in {label}; its records have:'
          f' {", ".join(sorted(records[0]))}'
      )
  return records


def _example(record: dict[str, Any], config: ImageConfig) -> Batch:
  digits = config.source == 'digits'
  image = record['image' if digits else config.image_field]
  label = int(record['label' if digits else config.label_field])
  if image.shape[-1] != config.channels:
    raise ConfigError(
        f'images.channels is {config.channels}, but an image has shape'
        f' {image.shape}'
    )
  if not 0 <= label < config.classes:
    raise ConfigError(
        f'images.classes is {config.classes}, but a label is {label}'
    )
  if image.shape[:2] != (config.image_size,) * 2:
    image = _fit(image, config.image_size)
  pixels = image.astype(np.float32) / 127.5 - 1
  return {'images': pixels, 'labels': np.asarray(label, np.int32)}


def _fit(image: np.ndarray, size: int) -> np.ndarray:
  """Scales an image so that it covers size x size, and takes its middle."""
  try:
    from PIL import Image, ImageOps
  except ImportError as error:
    raise ConfigError(
        f'images.image_size: scaling to {size} needs pillow ({error}); install'
        ' the extra hope_jax[images]'
    ) from error
  grey = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if grey else image)
  scaled = np.asarray(ImageOps.fit(picture, (size, size)))
  return scaled[..., None] if grey else scaled
