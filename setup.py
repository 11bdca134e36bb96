"""Packaging of hope_jax: the one build file of the project."""

import pathlib
import re

import setuptools
from setuptools.command import build_py

HERE = pathlib.Path(__file__).parent

# `dev` runs the whole test suite, so it includes what only some data sources
# need; a user who trains on plain files needs none of it.
IMAGES = ['pillow', 'scikit-learn']
DATASETS = ['array_record', 'tensorflow-datasets', 'tokenizers']
PARQUET = ['pyarrow']
DOCS = ['mkdocs>=1.6,<2', 'mkdocs-material>=9.5', 'mkdocstrings-python>=2']


def version() -> str:
  """Reads the version where it is kept, without importing anything."""
  text = (HERE / 'hope_jax' / '__init__.py').read_text(encoding='utf-8')
  return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


class BuildPy(build_py.build_py):
  """Puts the experiment files into the package, where --config finds them."""

  def run(self):  # noqa: D102
    super().run()
    if self.editable_mode:
      return  # They are beside the package.
    for path in sorted((HERE / 'experiments').rglob('*.py')):
      target = pathlib.Path(self.build_lib, 'hope_jax', path.relative_to(HERE))
      target.parent.mkdir(parents=True, exist_ok=True)
      self.copy_file(str(path), str(target))


setuptools.setup(
    name='hope_jax',
    version=version(),
    description='Nested Learning and Hope in JAX: a reference implementation.',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=setuptools.find_packages(include=['hope_jax', 'hope_jax.*']),
    package_data={'hope_jax': ['py.typed', 'report/*.html']},
    cmdclass={'build_py': BuildPy},
    python_requires='>=3.11',
    install_requires=[
        'absl-py',
        'flax>=0.12',
        'grain>=0.2.16',
        'jax>=0.10.2',
        'jinja2',
        'matplotlib',
        'ml-collections',
        'numpy',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.32',
        'tensorboardX',
        'tqdm',
    ],
    extras_require={
        'tpu': ['jax[tpu]>=0.10.2'],
        # CUDA 12 libraries come with the wheels and run on newer drivers too.
        'cuda': ['jax[cuda12]>=0.10.2'],
        'datasets': DATASETS,
        # Text in .parquet files.
        'parquet': PARQUET,
        # The digits, and pictures of TFDS (with 'datasets').
        'images': IMAGES,
        'notebooks': ['jupyterlab', 'ipywidgets'],
        # `mkdocs build --strict`.
        'docs': DOCS,
        'dev': DATASETS
        + IMAGES
        + PARQUET
        + DOCS
        # pyright runs on node, which [nodejs] brings as a package.
        + ['build', 'setuptools>=70.1', 'pyright[nodejs]', 'ruff']
        + ['pytest>=8', 'pytest-xdist']
        # Modules whose parameters our optimizers take.
        + ['equinox']
        # The TPU compiler: tests compile for TPUs that are not there.
        + ['libtpu; sys_platform == "linux" and platform_machine == "x86_64"'],
    },
    classifiers=[
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
)
