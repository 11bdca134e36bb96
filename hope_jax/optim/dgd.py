"""Delta gradient descent as an optimizer (NL §4.5, Eq. 54-57).

For a layer y = x W, x [in], W [in, out], with local gradient d = dL/dy:

    W <- argmin 1/2 |x W + d|^2 + 1/(2 eta) |W - W_t|^2
       = W_t - eta' x (d + x W_t)^T,      eta' = eta / (1 + eta |x|^2)

that is, gradient descent in which the weight's gradient is taken with d + y in
place of d. It needs the layer's inputs and outputs, which an optax
transformation never sees; a dot product does. `delta_dot_general` is
`jax.lax.dot_general` with the same values and the same gradient for its input,
and that other gradient for its weight:

    y = delta_dot_general(eta)(x, w, (((x.ndim - 1,), (0,)), ((), ())))  # JAX
    nn.Dense(features, dot_general=delta_dot_general(eta))            # Linen
    nnx.Linear(n, m, dot_general=delta_dot_general(eta), rngs=rngs)   # NNX

and works under scan, vmap and remat. It costs one elementwise pass over the
outputs, which it keeps for the backward pass, and no matrix product.

Not specified by the paper: batches. For a loss that is a mean over N rows each
row's d carries 1/N already; y is divided by N to match. `dgd` is then plain
gradient descent on the matrices, and another optimizer elsewhere.
"""

from collections.abc import Callable
import functools
from typing import Literal
import warnings

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import leaves, matrices
from hope_jax.optim.precision import TINY, keeps_float32
from hope_jax.types import Array

# Without optax's decay of 1e-4, which the matrices do not have either.
FALLBACKS = {
    'adamw': functools.partial(optax.adamw, weight_decay=0.0, eps_root=TINY),
    'sgd': optax.sgd,
}


def delta_dot_general(
    eta: float = 0.0, *, reduction: Literal['mean', 'sum'] = 'mean'
) -> Callable[..., Array]:
  """A `jax.lax.dot_general` whose weight gradient is that of DGD.

  With rows x_t [in] of the left side and outputs y_t = x_t W, where the loss is
  a mean over the N rows,

      weight gradient = sum_t x_t (d_t + y_t / N)^T / (1 + eta |x_t|^2)

  Args:
    eta: the learning rate of the weight, for the exact proximal step; 0 leaves
      the denominator out, which is right for small eta |x|^2.
    reduction: whether the loss is a mean over all rows ('mean'), or a sum.

  Returns:
    A function (lhs, rhs, dimension_numbers, precision=None,
    preferred_element_type=None) -> Array; rhs is the weight. Products with
    batch dimensions count the rows of each batch entry.
  """
  if reduction not in ('mean', 'sum'):
    raise ValueError(f"reduction must be 'mean' or 'sum'; got {reduction!r}")

  def dot_general(
      lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None,
      **kwargs,
  ):
    product = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **kwargs,
    )
    (contracted, _), (batch, _) = dimension_numbers
    contracted = tuple(contracted)
    rows = lhs.size
    for axis in (*contracted, *batch):
      rows //= lhs.shape[axis]

    @jax.custom_vjp
    def dot(x, w):
      return product(x, w)

    def forward(x, w):
      y = product(x, w)
      return y, (x, w, y)

    def backward(saved, d):
      x, w, y = saved
      (dx,) = jax.vjp(lambda x: product(x, w), x)[1](d)
      share = 1 / rows if reduction == 'mean' else 1
      wide = jnp.promote_types(y.dtype, jnp.float32)
      d = d.astype(wide) + share * y.astype(wide)
      if not (isinstance(eta, (int, float)) and eta == 0):
        # Axes of y: batch, rows, then columns of the weight.
        order = [*batch] + [
            i for i in range(x.ndim) if i not in (*batch, *contracted)
        ]
        size = jnp.sum(jnp.square(x.astype(wide)), axis=contracted)
        kept = [i for i in range(x.ndim) if i not in contracted]
        size = jnp.transpose(size, [kept.index(i) for i in order])
        size = size.reshape(*size.shape, *(1,) * (y.ndim - size.ndim))
        d = d / (1 + eta * size)
      (dw,) = jax.vjp(lambda w: product(x, w), w)[1](d.astype(y.dtype))
      return dx, dw

    dot.defvjp(forward, backward)
    return dot(lhs, rhs)

  return dot_general


def delta_dot(
    x: Array,
    w: Array,
    eta: float = 0.0,
    *,
    reduction: Literal['mean', 'sum'] = 'mean',
) -> Array:
  """x @ w, [..., in] and [in, out], with the weight gradient of DGD."""
  numbers = (((x.ndim - 1,), (0,)), ((), ()))
  return delta_dot_general(eta, reduction=reduction)(x, w, numbers)


@keeps_float32
def scale_by_dgd() -> optax.GradientTransformation:
  """The direction of delta gradient descent (NL Eq. 54-57): the gradient as is.

  The delta term needs the inputs of a layer, which no optimizer sees; it comes
  in the gradient, from `delta_dot_general`. What is left is the learning rate.

  Returns:
    A transformation without state.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.5, Eq. 54-57, and App. C.
  """
  return optax.identity()


@keeps_float32
def dgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    fallback: Literal['adamw', 'sgd'] = 'adamw',
    fallback_learning_rate: optax.ScalarOrSchedule | None = None,
    label_fn: matrices.LabelFn | None = None,
    stacked: leaves.Stacked = None,
) -> optax.GradientTransformationExtraArgs:
  """Delta gradient descent, for a model whose layers use `delta_dot_general`.

  Args:
    learning_rate: eta of the matrices.
    fallback: 'adamw' or 'sgd', for leaves that have no layer input: embeddings,
      norms, biases. They are counted, once, in a warning.
    fallback_learning_rate: of those; None: the same.
    label_fn: parameters -> a tree of 'matrix' (DGD) and 'other'. None goes by
      shape and name, see `matrix_labels`.
    stacked: names of the modules whose parameters are stacked over layers; see
      `matrix_labels`.

  Returns:
    A transformation.

  Raises:
    ValueError: an unknown fallback.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> x, w = jnp.eye(3), jnp.ones((3, 2))
    >>> tx = optim.dgd(0.5)
    >>> state = tx.init(w)
    >>> loss = lambda w: jnp.mean(jnp.sum(optim.delta_dot(x, w, 0.5) ** 2, -1))
    >>> updates, state = tx.update(jax.grad(loss)(w), state, w)
    >>> bool(loss(optax.apply_updates(w, updates)) < loss(w))
    True
  """
  if fallback not in FALLBACKS:
    raise ValueError(
        f'fallback must be one of {", ".join(FALLBACKS)}; got {fallback!r}'
    )
  if fallback_learning_rate is None:
    fallback_learning_rate = learning_rate
  label_fn = matrices.labeller(label_fn, stacked)

  def labels(params):
    labelled = label_fn(params)
    others = jax.tree.leaves(labelled).count('other')
    if others:
      warnings.warn(  # shown once by Python's own rules
          f'dgd: {others} leaves without layer inputs go to {fallback}',
          stacklevel=1,
      )
    return labelled

  return leaves.partition(
      {
          'matrix': optax.chain(
              scale_by_dgd(), optax.scale_by_learning_rate(learning_rate)
          ),
          'other': FALLBACKS[fallback](fallback_learning_rate),
      },
      labels,
  )
