"""Training text that is stopped anywhere, and goes on bit for bit."""

import json

import numpy as np

from hope_jax import data


def assert_equal(left, right):
  """Two batches hold the same arrays, of the same dtypes."""
  assert left.keys() == right.keys()
  for key in left:
    assert left[key].dtype == right[key].dtype
    np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def assert_resumes(config, batches, places, following):
  """Reads some batches, and from some places on again.

  Args:
    config: of the data.
    batches: how many are read without a stop.
    places: batches read before each of the stops.
    following: how many are compared after each.

  Returns:
    The state before each batch, as JSON.
  """
  stream, states, read = data.train_batches(config), [], []
  for _ in range(batches):
    states.append(json.dumps(stream.get_state()))
    read.append(next(stream))
  for at in places:
    again = data.train_batches(config)
    again.set_state(json.loads(states[at]))
    for want in read[at : at + following]:
      assert_equal(next(again), want)
  return states
