"""Momentum as an associative memory of gradients, and more expressive ones.

Plain momentum m <- alpha m + g is gradient descent on a memory that maps the
gradient to nothing but itself. Each rule below gives that memory something
(arXiv 2512.24695, §4.4): a value (Eq. 46-47), the delta rule (Eq. 48-49),
features of the gradient (Eq. 51), or a nonlinear read (Eq. 52).

As everywhere in optax, m points along the gradient, and the learning rate turns
it round; the paper writes the minus into m. Matrices are [in, out], the
transpose of the paper's.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import dimensions, leaves, matrices, newton_schulz
from hope_jax.optim.precision import TINY, keeps_float32, root
from hope_jax.types import Array, PyTree


def one_of(name: str, value: str, options) -> None:
  """Raises ValueError, with the options, unless `value` is one of them."""
  if value not in options:
    raise ValueError(
        f'{name} must be one of {", ".join(options)}; got {value!r}'
    )


def _length(g: Array, axes: Sequence[int]) -> Array:
  return root(jnp.sum(g * g, axis=axes, keepdims=True))


def _unit(g: Array, axes: Sequence[int]) -> Array:
  size = _length(g, axes)
  return jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)


# What a gradient is multiplied by before a memory takes it as a key; the length
# is that over `axes`.
SCALES = {
    'soft': lambda g, axes: 1 / (1 + _length(g, axes)),
    'unit': _unit,
    'none': lambda g, axes: jnp.ones_like(g, shape=()),
}


class MomentumState(NamedTuple):
  """State of the rules of this file."""

  momentum: PyTree  # m, like the parameters, float32 or wider


def _start(params: PyTree) -> MomentumState:
  return MomentumState(leaves.zeros(params))


def _momentum(step, output=lambda m, numbers: m, init=_start, given=None):
  """m <- step(g, m, numbers), leaf by leaf; the direction is output(m, ..)."""

  def update(updates, state, params=None):
    del params
    numbers = matrices.numbers_for(updates, given)
    momentum = jax.tree.map(step, updates, state.momentum, numbers)
    return jax.tree.map(output, momentum, numbers), MomentumState(momentum)

  return optax.GradientTransformation(init, update)


@keeps_float32
def scale_by_delta_momentum(
    *,
    decay: float = 0.9,
    delta: float = 0.5,
    gram: Literal['vector', 'matrix'] = 'vector',
    normalize: Literal['soft', 'unit', 'none'] = 'soft',
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Momentum that forgets what lies along the new gradient (NL Eq. 48-49).

      m <- decay m - delta g^ <g^, m> + g        gram='vector'
      m <- decay m - delta g^ (g^^T m) + g       gram='matrix'

  One step of descent on |m g^T - P|^2 instead of <m g^T, P>. Where momentum has
  already learned a direction it is not added once more, so that turning
  directions are followed faster.

  Not specified by the paper, which has no step size on the decay: `delta`, and
  the length of g^. It is stable where 0 <= delta |g^|^2 <= decay, whatever the
  gradient; hence g^ = g / (1 + |g|), which forgets more at steeper places and
  never has length 1. 'vector' reads a vector or matrix as one long row, so that
  g^T g is of rank one; it costs two sums, for which gradient and momentum are
  read once more. 'matrix' takes the Gram matrix of the gradient over a layer's
  inputs, as printed for matrices; two matrix products. Both take each matrix of
  a stack [..., in, out] by itself.

  Args:
    decay: what momentum keeps of itself.
    delta: step size of the delta rule; 0 is plain momentum (`optax.trace`).
    gram: see above; 'matrix' needs leaves with at least two axes.
    normalize: 'soft' as above; 'unit', g / |g|; 'none', g itself.
    weight_dimension_numbers: as in `optax.contrib.muon`; None goes by shape and
      name, see `dimension_numbers`.

  Returns:
    A transformation with a `MomentumState`.

  Raises:
    ValueError: an unknown option, or at init a leaf that is no matrix.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.4, Eq. 48-49; its camera-ready multiplies m from the other side.
  """
  one_of('gram', gram, ('vector', 'matrix'))
  one_of('normalize', normalize, SCALES)

  def init(params):
    if gram == 'matrix':
      matrices.require(params, "delta_momentum(gram='matrix')")
    return _start(params)

  def step(g, m, numbers):
    _, rows, columns = dimensions.sides(numbers, g.ndim)
    axes = (*rows, *columns)
    share = delta * SCALES[normalize](g, axes) ** 2
    if gram == 'vector':
      share = share * jnp.sum(g * m, axis=axes, keepdims=True)
      return decay * m + (1 - share) * g
    erased, _ = dimensions.on_matrices(_project, numbers, g, m)
    return decay * m + g - share * erased

  return _momentum(step, init=init, given=weight_dimension_numbers)


def _project(g: Array, m: Array) -> tuple[Array, tuple[()]]:
  """g g^T m, by whichever product is smaller."""
  t = jnp.swapaxes(g, -1, -2)
  wide = g.shape[-2] <= g.shape[-1]
  return (g @ t) @ m if wide else g @ (t @ m), ()


@keeps_float32
def delta_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay: float = 0.9,
    delta: float = 0.5,
    gram: Literal['vector', 'matrix'] = 'vector',
    normalize: Literal['soft', 'unit', 'none'] = 'soft',
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """SGD with delta momentum; see `scale_by_delta_momentum`.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.delta_momentum(0.1)
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(50):
    ...   updates, state = update(jax.grad(lambda w: w @ w)(w), state)
    ...   w = optax.apply_updates(w, updates)
    >>> bool(w @ w < 1e-2)
    True
  """
  return optax.chain(
      scale_by_delta_momentum(
          decay=decay, delta=delta, gram=gram, normalize=normalize,
          weight_dimension_numbers=weight_dimension_numbers,
      ),
      optax.scale_by_learning_rate(learning_rate),
  )


@keeps_float32
def scale_by_preconditioned_momentum(
    *,
    decay: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    preconditioner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
  """Momentum of preconditioned gradients, m <- decay m + P g (NL Eq. 46-47).

  The memory maps a gradient to a value P of its own; where P is diagonal this
  is momentum behind the preconditioner, and not ahead of it as in Adam.

  Args:
    decay: what momentum keeps of itself.
    b2: decay of the second moment of the default preconditioner, P = 1 /
      (sqrt(V) + eps), bias-corrected.
    eps: see b2.
    preconditioner: any other optax transformation in its place.

  Returns:
    The preconditioner, then `optax.trace(decay)`.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.4, Eq. 46-47.
  """
  if preconditioner is None:
    preconditioner = optax.scale_by_adam(
        b1=0.0, b2=b2, eps=eps, eps_root=TINY
    )
  return optax.chain(preconditioner, optax.trace(decay))


@keeps_float32
def preconditioned_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    preconditioner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
  """Descent along `scale_by_preconditioned_momentum`.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.preconditioned_momentum(0.01)
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(200):
    ...   updates, state = update(jax.grad(lambda w: w @ w)(w), state)
    ...   w = optax.apply_updates(w, updates)
    >>> bool(w @ w < 0.1)
    True
  """
  return optax.chain(
      scale_by_preconditioned_momentum(
          decay=decay, b2=b2, eps=eps, preconditioner=preconditioner
      ),
      optax.scale_by_learning_rate(learning_rate),
  )


def signed_sqrt(g: Array) -> Array:
  """sign(g) sqrt(|g|), with zero at zero."""
  return jnp.sign(g) * root(jnp.abs(g))


FEATURES = {
    'identity': lambda g: g,
    'cubic': lambda g: g + g**3,
    'sign': jnp.sign,
    'signed_sqrt': signed_sqrt,
}


@keeps_float32
def scale_by_feature_momentum(
    *,
    decay: float = 0.9,
    feature: str | Callable[[Array], Array] = 'signed_sqrt',
) -> optax.GradientTransformation:
  """Momentum of features of the gradient, m <- decay m + phi(g) (NL Eq. 51).

  Args:
    decay: what momentum keeps of itself.
    feature: phi; one of 'identity' (plain momentum), 'cubic' (g + g^3), 'sign',
      'signed_sqrt', or a function of a leaf. The paper leaves it open; the
      default damps rare large gradients.

  Returns:
    A transformation with a `MomentumState`.

  Raises:
    ValueError: an unknown name.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.4, Eq. 51.
  """
  if isinstance(feature, str):
    one_of('feature', feature, FEATURES)
  phi = FEATURES[feature] if isinstance(feature, str) else feature
  return _momentum(lambda g, m, _: decay * m + phi(g))


@keeps_float32
def feature_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay: float = 0.9,
    feature: str | Callable[[Array], Array] = 'signed_sqrt',
) -> optax.GradientTransformation:
  """Descent along `scale_by_feature_momentum`.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.feature_momentum(0.01)
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(200):
    ...   updates, state = update(jax.grad(lambda w: w @ w)(w), state)
    ...   w = optax.apply_updates(w, updates)
    >>> bool(w @ w < 0.1)
    True
  """
  return optax.chain(
      scale_by_feature_momentum(decay=decay, feature=feature),
      optax.scale_by_learning_rate(learning_rate),
  )


OUTPUTS = {'identity': lambda m: m, 'sign': jnp.sign, 'tanh': jnp.tanh}


@keeps_float32
def scale_by_nonlinear_momentum(
    *,
    decay: float = 0.9,
    output: str | Callable[[Array], Array] = 'tanh',
    ns_steps: int = 5,
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Momentum read through a nonlinearity, sigma(m) (NL Eq. 52).

  Args:
    decay: what momentum keeps of itself, m <- decay m + g.
    output: sigma; 'identity' (plain momentum), 'sign' (signed momentum),
      'tanh', 'newton_schulz' (Muon, without Nesterov), or a function of a leaf.
    ns_steps: iterations of 'newton_schulz'.
    weight_dimension_numbers: as in `optax.contrib.muon`; None goes by shape and
      name, see `dimension_numbers`.

  Returns:
    A transformation with a `MomentumState`.

  Raises:
    ValueError: an unknown name, or at init a leaf that is no matrix under
      'newton_schulz'.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025,
    §4.4, Eq. 52.
  """
  newton_schulz.check_steps(ns_steps)
  if isinstance(output, str):
    one_of('output', output, (*OUTPUTS, 'newton_schulz'))
  sigma = OUTPUTS.get(output) if isinstance(output, str) else output

  def init(params):
    if sigma is None:
      matrices.require(params, 'Newton-Schulz momentum')
    return _start(params)

  def read(m, numbers):
    if sigma is not None:
      return sigma(m)
    return newton_schulz.orthogonalize(m, steps=ns_steps, numbers=numbers)

  return _momentum(
      lambda g, m, _: decay * m + g, read, init, weight_dimension_numbers
  )


@keeps_float32
def nonlinear_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay: float = 0.9,
    output: str | Callable[[Array], Array] = 'tanh',
    ns_steps: int = 5,
    weight_dimension_numbers: matrices.NumbersOf = None,
) -> optax.GradientTransformation:
  """Descent along `scale_by_nonlinear_momentum`.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from hope_jax import optim
    >>> tx = optim.nonlinear_momentum(0.05)
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> update = jax.jit(tx.update)
    >>> for _ in range(200):
    ...   updates, state = update(jax.grad(lambda w: w @ w)(w), state)
    ...   w = optax.apply_updates(w, updates)
    >>> bool(w @ w < 0.1)
    True
  """
  return optax.chain(
      scale_by_nonlinear_momentum(
          decay=decay, output=output, ns_steps=ns_steps,
          weight_dimension_numbers=weight_dimension_numbers,
      ),
      optax.scale_by_learning_rate(learning_rate),
  )
