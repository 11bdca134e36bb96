"""Array aliases, shape letters and the dtype policy used in the whole package.

Shape letters, in einsum strings and in every docstring:

| letter | meaning                                        |
|--------|------------------------------------------------|
| B      | batch: independent streams of tokens           |
| T      | time: tokens given in one call                 |
| C      | chunk: tokens between two updates of a level   |
| N      | chunks in a call                               |
| H      | heads                                          |
| K      | width of a key (and of a query)                |
| V      | width of a value                               |
| F      | hidden width of an MLP                         |
| D      | model width                                    |
| L      | layers                                         |
| E      | vocabulary entries                             |

Runs of tokens, the only words for them:

| word     | meaning                                                       |
|----------|---------------------------------------------------------------|
| sequence | one row of a call, [B, T]; rows never see each other          |
| segment  | a document in a packed row; memories restart where it starts  |
| chunk    | tokens between two updates of a level (NL Eq. 90), a choice   |
|          | of the model: it changes results                              |
| tile     | tokens that are computed together, a choice of speed: it      |
|          | never changes results                                         |

Dtype policy: parameters, recurrent states, gates, norms, softmax and losses are
float32; matrix products run in the compute dtype of the configuration and
accumulate in float32.
"""

from typing import Any

import jax

Array = jax.Array
PyTree = Any


class UnsupportedError(ValueError):
  """A choice that cannot run on this device or for these sizes; one line."""
