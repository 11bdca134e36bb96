"""Labelled images: the digits, a TFDS set, and what can be wrong with one."""

import io
import itertools

import numpy as np
import pytest

from hope_jax.config import ConfigError, ImageConfig
from hope_jax.data import images


@pytest.fixture
def digits():
  pytest.importorskip('sklearn', reason='scikit-learn is not installed')
  return ImageConfig(batch_size=100)


def test_digits(digits):
  """If it fails, held-out digits are trained on, or pixels are out of range."""
  heldout = list(images.heldout_batches(digits))
  assert [len(b['labels']) for b in heldout] == [100, 100, 100, 60]
  epoch = itertools.islice(images.train_batches(digits, 1), 15)
  seen = np.concatenate([b['images'] for b in epoch])
  assert seen.shape == (1500, 8, 8, 1) and seen.dtype == np.float32
  assert seen.min() == -1 and seen.max() == 1
  rows = lambda x: {image.tobytes() for image in x}
  kept = rows(np.concatenate([b['images'] for b in heldout]))
  assert not rows(seen) & kept
  assert len(rows(seen)) == 1437  # all of them in an epoch


def test_order_is_the_seed_s(digits):
  first = [next(images.train_batches(digits, s))['labels'] for s in (1, 1, 2)]
  np.testing.assert_array_equal(first[0], first[1])
  assert (first[0] != first[2]).any()


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
  """A real TFDS set of 10 x 6 pictures, prepared without TensorFlow."""
  tfds = pytest.importorskip(
      'tensorflow_datasets', reason='tensorflow-datasets is not installed'
  )
  pil = pytest.importorskip('PIL.Image', reason='pillow is not installed')

  class Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    code_path = None
    pkg_dir_path = tmp_path_factory.mktemp('tfds_package')

    def _info(self):
      features = tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(10, 6, 3)),
          'label': tfds.features.ClassLabel(num_classes=4),
      })
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(8),
              'test': self._generate_examples(3)}

    def _generate_examples(self, count):
      for i in range(count):
        # As a file: TFDS would encode an array with TensorFlow.
        picture = io.BytesIO()
        image = pil.fromarray(np.full((10, 6, 3), 10 * i, np.uint8))
        image.save(picture, format='png')
        picture.seek(0)
        yield i, {'image': picture, 'label': i % 4}

  builder = Pictures(
      data_dir=tmp_path_factory.mktemp('tfds'), file_format='array_record'
  )
  builder.download_and_prepare()
  return str(builder.data_dir)


def test_tfds(tfds_folder):
  """If it fails, the paper's own data set cannot be used."""
  config = ImageConfig(
      source='tfds', path=tfds_folder, heldout_path=f'{tfds_folder}@test',
      classes=4, image_size=4, channels=3, batch_size=2,
  )
  batch = next(images.train_batches(config, 0))
  assert batch['images'].shape == (2, 4, 4, 3)
  (first, last) = images.heldout_batches(config)
  assert last['labels'].tolist() == [2] or len(last['labels']) == 1
  np.testing.assert_allclose(
      first['images'][:, 0, 0, 0], first['labels'] * 10 / 127.5 - 1, atol=1e-6
  )
  for wrong, words in (
      ({'channels': 1}, r'channels is 1, but an image has shape \(10, 6, 3\)'),
      ({'label_field': 'class'}, "no field 'class' .* image, label"),
      ({'heldout_path': f'{tfds_folder}@nosplit'}, 'nosplit'),
      ({'classes': 2}, 'classes is 2, but a label is [23]'),
  ):
    fields = {**vars(config), **wrong}
    with pytest.raises(ConfigError, match=words):
      list(images.heldout_batches(ImageConfig(**fields)))


def test_tfds_needs_both_paths():
  with pytest.raises(ConfigError, match='path and heldout_path'):
    ImageConfig(source='tfds', path='imagenet21k_p@train')
