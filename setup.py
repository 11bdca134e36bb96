"""Packaging of hope_jax: the one build file of the project."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

# `dev` runs the whole test suite, so it includes what only some data sources
# need; a user who trains on plain files needs none of it.
IMAGES = ['pillow', 'scikit-learn']
DATASETS = ['array_record', 'tensorflow-datasets', 'tokenizers']

setuptools.setup(
    name='hope_jax',
    version='0.1.0',
    description='Nested Learning and Hope in JAX: a reference implementation.',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=setuptools.find_packages(include=['hope_jax', 'hope_jax.*']),
    python_requires='>=3.11',
    install_requires=[
        'absl-py',
        'flax>=0.12',
        'grain>=0.2.16',
        'jax>=0.10.2',
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
        # The digits, and pictures of TFDS (with 'datasets').
        'images': IMAGES,
        'notebooks': ['jupyterlab', 'ipywidgets'],
        'dev': DATASETS
        + IMAGES
        + ['pytest>=8', 'pytest-xdist', 'ruff']
        # The TPU compiler: tests compile for TPUs that are not there.
        + ['libtpu; sys_platform == "linux" and platform_machine == "x86_64"'],
    },
    classifiers=[
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
