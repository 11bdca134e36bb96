"""Deep momentum gradient descent, DMGD: the momentum is an MLP (NL Eq. 50).

Momentum is a linear memory of gradients. Let u_j [in] be column j of a matrix's
gradient U [in, out], which is what output unit j asks for. To store each u_j
under the unit's own coordinate e_j, by descent on -sum_j <m(u_j), e_j>, is
m <- alpha m + U for a linear m (Eq. 46-47 with P = I). Deep momentum stores the
same pairs in an MLP beside that linear memory, the residual form of Eq. 89:

    m(u) = M^T u + B^T relu(A^T u)           M [in, out], A [in, h], B [h, out]
    write  theta <- theta_0 + alpha (theta - theta_0) + rate grad_theta L
    read   W <- W - learning_rate grad_U sum_j <m(u_j), e_j>

with L = sum_j <m(u_j), e_j>, or -1/2 sum_j |m(u_j) - e_j|^2. What is read is
M + A ([A^T U > 0] * B), the product elementwise: a momentum that all gradients
share, and one of the hidden units that the gradient at hand excites. Of a
linear memory M alone is read, so that without hidden layers this is momentum,
and under the second L delta momentum.

Not specified by the paper: widths, L, and what the numbers of a gradient are to
the MLP. Eq. 50 prints the read as m(u) and the values as ones. For a matrix
neither can be meant: m(u) has not the shape of W, while Eq. 52 calls Muon the
case of a linear m, whose read then is m itself; and an MLP all of whose outputs
are pulled to one moves all weights one way, whatever the gradient's sign.
theta_0 holds the hidden layers' first weights, drawn from one fixed key, and
zeros for M and B: a decay of the hidden layers to zero would leave no MLP.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import dimensions, leaves, matrices, momentum
from hope_jax.optim.precision import keeps_float32
from hope_jax.types import Array, PyTree


class DeepMomentumState(NamedTuple):
  """State of `scale_by_deep_momentum`: trees of the parameters' structure.

  All float32, or wider where the parameters are; a vector counts as [in, 1].
  """

  linear: PyTree  # M, shaped like the parameters
  layers: tuple[PyTree, ...]  # A [..., in, h], ..., B [..., h, out], or ()
  start: tuple[PyTree, ...]  # theta_0 of the hidden layers: all but B


@keeps_float32
def scale_by_deep_momentum(
    *,
    decay: float = 0.9,
    rate: float = 0.05,
    hidden: Sequence[int] = (16,),
    objective: Literal['dot', 'l2'] = 'dot',
    normalize: Literal['unit', 'soft', 'none'] = 'unit',
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Momentum that is an MLP trained on the gradients (NL Eq. 50).

  Each matrix has an MLP of its own, each of a stack [..., in, out], too, and
  feeds it the columns of its gradient. Beside momentum that takes (in + out) h
  numbers for A and B and in x h for A_0, and some 8 h multiplications for each
  parameter; a vector, counted as [in, 1], takes 2 h times its own size. An MLP
  over all entries of a matrix at once would take h times the parameters; one
  that all entries share could remember nothing about any of them.

  Where 2 rate <= 1 - decay and no gradient that is stored is longer than 1,
  |B| <= 2/3 |A_0| and |A - A_0| <= 1/3 |A_0| for ever, whatever the gradients
  ('dot', one hidden layer): an MLP, a product of weights, could else feed on
  itself.

  Args:
    decay: alpha, what the memory keeps of itself.
    rate: step size of the memory, the paper's eta; see above.
    hidden: widths of the hidden layers; () is a linear memory.
    objective: L above; 'dot' is the example of Eq. 50, 'l2' the delta rule,
      which takes products of whole matrices.
    normalize: what is stored, for each matrix: 'unit', g / |g|, so that neither
      the memory nor a step depends on the gradient's scale; 'soft', g / (1 +
      |g|); 'none', g itself.
    weight_dimension_numbers: as in `optax.contrib.muon`; None goes by shape and
      name, see `dimension_numbers`.

  Returns:
    A transformation with a `DeepMomentumState`. A zero gradient stores nothing;
    NaN stays in its leaf.

  Raises:
    ValueError: an unknown option, or a width that is not positive.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.4, Eq. 50, and Eq. 89 for the MLP.
  """
  momentum.one_of('objective', objective, ('dot', 'l2'))
  momentum.one_of('normalize', normalize, momentum.SCALES)
  hidden = tuple(hidden)
  if any(width < 1 for width in hidden):
    raise ValueError(f'hidden must be positive widths; got {hidden}')
  loss = _agreement if objective == 'dot' else _minus_error
  scale = momentum.SCALES[normalize]
  given = weight_dimension_numbers

  def step(g, m, *weights):
    """Of matrices: what is read and M, then the layers after."""
    cut = len(hidden) + 1
    memory, start = (m, *weights[:cut]), (0, *weights[cut:], 0)
    keys = scale(g, (-2, -1)) * g
    written = zip(memory, start, jax.grad(loss)(memory, keys))
    memory = tuple(o + decay * (w - o) + rate * d for w, o, d in written)
    read = jax.grad(_agreement, argnums=1)(memory, keys)
    return (read, memory[0]), memory[1:]

  def update(updates, state, params=None):
    del params
    return _written(step, given, updates, state)

  return optax.GradientTransformation(
      lambda params: _start(params, given, hidden), update
  )


def _start(
    params: PyTree, given: matrices.NumbersOf, hidden: Sequence[int]
) -> DeepMomentumState:
  linear = leaves.zeros(params)
  # One array each: who donates the state may not give a buffer twice.
  layers = _layers(linear, given, hidden)
  start = _layers(linear, given, hidden)[:-1]
  return DeepMomentumState(linear, layers, start)


def _written(
    step: Callable,
    given: matrices.NumbersOf,
    updates: PyTree,
    state: DeepMomentumState,
) -> tuple[PyTree, DeepMomentumState]:
  """The step on every leaf: what is read, and the state."""
  flat, structure = jax.tree.flatten(updates)
  if not flat:
    return updates, state
  columns = zip(*map(
      structure.flatten_up_to,
      (matrices.numbers_for(updates, given), updates, state.linear,
       *state.layers, *state.start),
  ))
  results = []
  for numbers, g, m, *weights in columns:
    read, layers = dimensions.on_matrices(step, numbers, g, m, beside=weights)
    results.append((*read, *layers))
  updates, linear, *layers = map(structure.unflatten, zip(*results))
  return updates, DeepMomentumState(linear, tuple(layers), state.start)


def _layers(
    linear: PyTree, given: matrices.NumbersOf, hidden: Sequence[int]
) -> tuple[PyTree, ...]:
  """A, ..., B as they start: trees of the parameters' structure; or ()."""
  if not hidden:
    return ()
  if isinstance(linear, _PLACEHOLDER):
    # Of optax.tree.map_params: the layers have not the parameters' shapes.
    return (0,) * (len(hidden) + 1)
  numbers = matrices.numbers_for(linear, given)

  def layer(i):
    def of(m, one):
      draw = functools.partial(_draw, hidden=hidden, i=i)
      w = dimensions.on_matrices(draw, one, m)[1]
      if i in (0, len(hidden)):
        w = dimensions.split_like(w, m, one, 'out' if i else 'in')
      return w

    return jax.tree.map(of, linear, numbers)

  return tuple(map(layer, range(len(hidden) + 1)))


def _placeholder() -> type:
  """What optax.tree.map_params has in the place of all parameters."""
  seen = []

  def init(params):
    seen.append(params)
    return ()

  optax.tree.map_params(init, lambda x: x, ())
  return type(seen[0])


_PLACEHOLDER = _placeholder()


def _draw(x: Array, hidden: Sequence[int], i: int) -> tuple[tuple[()], Array]:
  """Layer i of each matrix of x, which is zero, of spectral norm about 1.

  Hidden ones are drawn from a fixed key, the last is zero. Added to x for its
  stack and that one's sharding.
  """
  height, width = (x.shape[-2], *hidden, x.shape[-1])[i : i + 2]
  if i == len(hidden):
    return (), jnp.sum(x, axis=-2, keepdims=True) + jnp.zeros(
        (height, 1), x.dtype
    )
  key = jax.random.fold_in(jax.random.key(0), i)
  w = jax.random.normal(key, (height, width), x.dtype)
  size = math.sqrt(height) + math.sqrt(width)
  return (), jnp.sum(x, axis=(-2, -1), keepdims=True) + w / size


def _features(memory: Sequence[Array], keys: Array) -> Array:
  """The last hidden layer's values [..., h, out] of the keys [..., in, out]."""
  for w in memory[1:-1]:
    keys = jax.nn.relu(jnp.swapaxes(w, -1, -2) @ keys)
  return keys


def _agreement(memory: Sequence[Array], keys: Array) -> Array:
  """sum_j <m(u_j), e_j>, over all matrices of a stack."""
  total = jnp.sum(memory[0] * keys)
  if len(memory) > 1:
    total = total + jnp.sum(memory[-1] * _features(memory, keys))
  return total


def _minus_error(memory: Sequence[Array], keys: Array) -> Array:
  """-1/2 sum_j |m(u_j) - e_j|^2, up to a constant."""
  x, y = memory[0], keys
  if len(memory) > 1:
    x = jnp.concatenate([x, memory[-1]], axis=-2)
    y = jnp.concatenate([y, _features(memory, keys)], axis=-2)
  # |X^T Y|^2 = <X X^T, Y Y^T>: by whichever products are smaller.
  turn = lambda z: jnp.swapaxes(z, -1, -2)
  if x.shape[-2] <= x.shape[-1]:
    square = jnp.sum((x @ turn(x)) * (y @ turn(y)))
  else:
    square = jnp.sum((turn(x) @ y) ** 2)
  return _agreement(memory, keys) - square / 2


@keeps_float32
def deep_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay: float = 0.9,
    rate: float = 0.05,
    hidden: Sequence[int] = (16,),
    objective: Literal['dot', 'l2'] = 'dot',
    normalize: Literal['unit', 'soft', 'none'] = 'unit',
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Descent along `scale_by_deep_momentum`.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.deep_momentum(0.1)
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(50):
    ...   updates, state = update(jax.grad(lambda w: w @ w)(w), state)
    ...   w = optax.apply_updates(w, updates)
    >>> bool(w @ w < 1e-1)
    True
  """
  return optax.chain(
      scale_by_deep_momentum(
          decay=decay, rate=rate, hidden=hidden, objective=objective,
          normalize=normalize,
          weight_dimension_numbers=weight_dimension_numbers,
      ),
      optax.scale_by_learning_rate(learning_rate),
  )
