"""A small model of bytes, and a memory of it."""

import jax
import numpy as np
import pytest

from hope_jax import sharding
from hope_jax.data.tokenizer import ByteTokenizer
from hope_jax.infer.session import Session
from tests import standin


@pytest.fixture(scope='module')
def params():
  tokens = np.zeros((1, 4), np.int32)
  init = jax.jit(standin.BYTES.init)
  return sharding.unbox(init(jax.random.key(0), tokens)['params'])


@pytest.fixture
def session(params):
  return Session(standin.BYTES, params, ByteTokenizer())
