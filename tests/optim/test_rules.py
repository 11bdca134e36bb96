"""Every rule against its NumPy oracle over 10 steps, and its limits."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import optim
from tests.oracles import optimizers as oracle

STEPS = 10


def grads_of(shape, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape) for _ in range(STEPS)]


def run(tx, grads):
  """The directions of `tx`, in float64."""
  with jax.enable_x64(True):
    params = jnp.zeros(grads[0].shape, jnp.float64)
    state = tx.init(params)
    step = jax.jit(tx.update)
    out = []
    for g in grads:
      update, state = step(jnp.asarray(g), state, params)
      assert update.dtype == jnp.float64
      out.append(np.asarray(update))
  return out


def assert_rule(tx, grads, expected, tol=1e-10):
  for t, (got, want) in enumerate(zip(run(tx, grads), expected, strict=True)):
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol, err_msg=f'{t=}')


@pytest.mark.parametrize('normalize', ['soft', 'unit', 'none'])
@pytest.mark.parametrize(
    'gram, shape', [('vector', (7,)), ('vector', (4, 3)), ('matrix', (4, 3)),
                    ('matrix', (3, 5))]
)
def test_delta_momentum(gram, normalize, shape):
  grads = [0.3 * g for g in grads_of(shape)]
  tx = optim.scale_by_delta_momentum(
      decay=0.9, delta=0.6, gram=gram, normalize=normalize
  )
  expected = oracle.delta_momentum(grads, 0.9, 0.6, gram, normalize)
  assert_rule(tx, grads, expected)


@pytest.mark.parametrize(
    'tx',
    [
        optim.scale_by_delta_momentum(gram='vector'),
        optim.scale_by_delta_momentum(gram='matrix'),
        optim.scale_by_deep_momentum(hidden=(5, 3)),
        optim.scale_by_deep_momentum(objective='l2'),
        optim.scale_by_m3(period=3),
        optim.scale_by_adamuon(),
        optim.scale_by_nonlinear_momentum(output='newton_schulz'),
    ],
)
def test_a_stack_moves_as_its_matrices_do(tx):
  """If it fails, layers that are stored as one array learn from each other."""
  grads = grads_of((2, 4, 3))
  parts = [run(tx, [g[i] for g in grads]) for i in range(2)]
  for t, got in enumerate(run(tx, grads)):
    for i in range(2):
      np.testing.assert_allclose(got[i], parts[i][t], atol=1e-12)


def test_delta_zero_is_plain_momentum():
  grads = grads_of((4, 3))
  plain = run(optax.trace(0.9), grads)
  for gram in ('vector', 'matrix'):
    tx = optim.scale_by_delta_momentum(decay=0.9, delta=0.0, gram=gram)
    assert_rule(tx, grads, plain)


def test_delta_momentum_never_grows_beyond_its_gradients():
  """With 0 <= delta |g^|^2 <= decay the map of m is a contraction."""
  huge = [1e6 * g for g in grads_of((5,))]
  for got in run(optim.scale_by_delta_momentum(decay=0.9, delta=0.9), huge):
    assert np.linalg.norm(got) <= 10 * max(np.linalg.norm(g) for g in huge)


def start_of(tx, shape):
  """The hidden layers that deep momentum draws, in float64."""
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, list(tx.init(jnp.zeros(shape)).start))


@pytest.mark.parametrize('objective', ['dot', 'l2'])
@pytest.mark.parametrize('normalize', ['unit', 'soft', 'none'])
@pytest.mark.parametrize(
    'hidden, shape',
    [((5,), (4, 3)), ((5,), (3, 16)), ((4, 2), (4, 3)), ((), (4, 3)),
     ((5,), (7,))],
)
def test_deep_momentum(hidden, shape, normalize, objective):
  grads = [0.3 * g for g in grads_of(shape)]
  tx = optim.scale_by_deep_momentum(
      decay=0.8, rate=0.3, hidden=hidden, objective=objective,
      normalize=normalize,
  )
  matrices = [g.reshape(len(g), -1) for g in grads]
  expected = oracle.deep_momentum(
      matrices, start_of(tx, shape), 0.8, 0.3, objective, normalize
  )
  assert_rule(tx, grads, [d.reshape(shape) for d in expected])


def test_deep_momentum_without_hidden_layers_is_momentum_or_delta_momentum():
  """Eq. 50 with a linear memory is momentum; with the L2 loss, Eq. 49."""
  grads = grads_of((4, 3))
  options = {'hidden': (), 'normalize': 'none'}
  tx = optim.scale_by_deep_momentum(decay=0.9, rate=1.0, **options)
  assert_rule(tx, grads, run(optax.trace(0.9), grads))
  tx = optim.scale_by_deep_momentum(
      decay=0.9, rate=0.1, objective='l2', **options
  )
  delta = optim.scale_by_delta_momentum(
      decay=0.9, delta=0.1, gram='matrix', normalize='none'
  )
  assert_rule(tx, grads, [0.1 * d for d in run(delta, grads)])


def test_deep_momentum_never_outgrows_its_bounds():
  """If it fails, an MLP of products of weights may feed on itself."""
  tx = optim.scale_by_deep_momentum(decay=0.9, rate=0.05, hidden=(4,))
  params = jnp.zeros((6, 5))
  state = start = tx.init(params)
  step = jax.jit(tx.update)
  size = jnp.linalg.norm(start.layers[0])
  for i in range(200):
    _, state = step(jnp.full((6, 5), 1e6 * (-1) ** (i // 50)), state, params)
    hidden, last = state.layers
    assert jnp.linalg.norm(last) <= 2 / 3 * size
    assert jnp.linalg.norm(hidden - start.layers[0]) <= size / 3


def test_deep_momentum_answers_each_gradient_with_its_own():
  """If it fails, the MLP is a second linear momentum, and learns nothing.

  Two gradients take turns. Asked with one, the memory answers with more of it
  than momentum has, which is the same whoever asks.
  """
  a, b = np.zeros((2, 8, 8), np.float32)
  a[0, 0] = b[1, 0] = 1
  tx = optim.scale_by_deep_momentum(hidden=(64,))
  params = jnp.zeros((8, 8))
  state, step = tx.init(params), jax.jit(tx.update)
  for _ in range(40):
    for g in (a, b):
      read, state = step(jnp.asarray(g), state, params)
  extra = read - state.linear
  own, other = float(jnp.sum(extra * b)), float(jnp.sum(extra * a))
  shared = float(jnp.sum(state.linear * b) / jnp.sum(state.linear * a))
  assert own / other > 1.3 * shared, (own, other, shared)


def test_preconditioned_momentum():
  grads = grads_of((4, 3))
  assert_rule(
      optim.scale_by_preconditioned_momentum(decay=0.8), grads,
      oracle.preconditioned_momentum(grads, 0.8), tol=1e-6,
  )


FEATURES = {
    'identity': lambda g: g,
    'cubic': lambda g: g + g**3,
    'sign': np.sign,
    'signed_sqrt': lambda g: np.sign(g) * np.abs(g) ** 0.5,
}


@pytest.mark.parametrize('name', FEATURES)
def test_feature_momentum(name):
  grads = grads_of((4, 3))
  expected = oracle.function_momentum(grads, 0.9, feature=FEATURES[name])
  assert_rule(optim.scale_by_feature_momentum(feature=name), grads, expected)


OUTPUTS = {
    'identity': lambda m: m,
    'sign': np.sign,
    'tanh': np.tanh,
    'newton_schulz': oracle.newton_schulz,
}


@pytest.mark.parametrize('name', OUTPUTS)
def test_nonlinear_momentum(name):
  grads = grads_of((4, 3))
  expected = oracle.function_momentum(grads, 0.9, output=OUTPUTS[name])
  assert_rule(optim.scale_by_nonlinear_momentum(output=name), grads, expected)


def test_identity_output_is_plain_momentum():
  grads = grads_of((4, 3))
  tx = optim.scale_by_nonlinear_momentum(decay=0.9, output='identity')
  assert_rule(tx, grads, run(optax.trace(0.9), grads))


def test_newton_schulz_momentum_is_muon():
  """optax's Muon without Nesterov; its average differs by a factor only."""
  grads = grads_of((4, 3))
  muon = run(optax.contrib.scale_by_muon(beta=0.9, nesterov=False), grads)
  tx = optim.scale_by_nonlinear_momentum(decay=0.9, output='newton_schulz')
  assert_rule(tx, grads, muon, tol=1e-5)


@pytest.mark.parametrize('nesterov', [True, False])
@pytest.mark.parametrize('shape', [(4, 3), (2, 3, 5)])
def test_muon(shape, nesterov):
  grads = grads_of(shape)
  assert_rule(
      optim.scale_by_muon(nesterov=nesterov), grads,
      oracle.muon(grads, nesterov=nesterov), tol=1e-6,
  )


@pytest.mark.parametrize('rms_over', ['matrix', 'leaf'])
@pytest.mark.parametrize('shape', [(4, 3), (2, 3, 5)])
def test_adamuon(shape, rms_over):
  grads = grads_of(shape)
  assert_rule(
      optim.scale_by_adamuon(rms_over=rms_over), grads,
      oracle.adamuon(grads, rms_over=rms_over), tol=1e-6,
  )


@pytest.mark.parametrize('consistent_rms', [None, 0.2])
def test_muon_is_optax_s_where_that_reaches(consistent_rms):
  """If it fails, the name promises what it does not keep."""
  grads = {'stack': grads_of((2, 3, 5)), 'bias': grads_of((3,))}
  ours = optim.muon(0.1, consistent_rms=consistent_rms)
  theirs = optax.contrib.muon(
      0.1, consistent_rms=consistent_rms,
      muon_weight_dimension_numbers={
          'stack': optax.contrib.MuonDimensionNumbers(-2, -1), 'bias': None
      },
  )
  params = {name: jnp.zeros(g[0].shape) for name, g in grads.items()}
  states = [ours.init(params), theirs.init(params)]
  for t in range(STEPS):
    now = {name: jnp.asarray(g[t], jnp.float32) for name, g in grads.items()}
    a, states[0] = ours.update(now, states[0], params)
    b, states[1] = theirs.update(now, states[1], params)
    for name in params:
      np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_functions_may_take_the_place_of_names():
  grads = grads_of((4, 3))
  assert_rule(
      optim.scale_by_feature_momentum(feature=jnp.sign), grads,
      oracle.function_momentum(grads, 0.9, feature=np.sign),
  )
  assert_rule(
      optim.scale_by_nonlinear_momentum(output=jnp.tanh), grads,
      oracle.function_momentum(grads, 0.9, output=np.tanh),
  )


@pytest.mark.parametrize('accumulate', ['ema', 'sum'])
@pytest.mark.parametrize('periods', [(1,), (1, 2), (1, 2, 4), (3,)])
def test_multi_scale_momentum(periods, accumulate):
  grads = grads_of((4, 3))
  options = {
      'periods': periods,
      'decays': (0.9, 0.7, 0.5)[: len(periods)],
      'weights': (1.0, 0.5, 0.25)[: len(periods)],
      'accumulate': accumulate,
  }
  assert_rule(
      optim.scale_by_multi_scale_momentum(**options), grads,
      oracle.multi_scale_momentum(grads, **options), tol=1e-6,
  )


def test_one_level_is_momentum():
  grads = grads_of((4, 3))
  tx = optim.scale_by_multi_scale_momentum(
      periods=(1,), decays=(0.9,), weights=(1.0,)
  )
  assert_rule(tx, grads, run(optax.ema(0.9), grads), tol=1e-6)


@pytest.mark.parametrize('accumulate', ['ema', 'sum'])
@pytest.mark.parametrize('rms', [0.2, None])
@pytest.mark.parametrize('period', [1, 3])
@pytest.mark.parametrize('shape', [(4, 3), (2, 3, 5)])
def test_m3(shape, period, rms, accumulate):
  grads = grads_of(shape)
  options = {'period': period, 'rms': rms, 'accumulate': accumulate}
  assert_rule(
      optim.scale_by_m3(**options), grads, oracle.m3(grads, **options), tol=1e-6
  )


def test_m3_without_slow_weight_is_muon_over_second_moment():
  grads = grads_of((4, 3))
  muon = run(optax.contrib.scale_by_muon(beta=0.9, nesterov=False), grads)
  v, expected = 0.0, []
  for t, (o, g) in enumerate(zip(muon, grads), 1):
    v = 0.999 * v + 0.001 * g * g
    expected.append(o / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
  tx = optim.scale_by_m3(slow_weight=0.0, period=1, rms=None)
  assert_rule(tx, grads, expected, tol=1e-5)


def test_m3_orthogonalises_the_slow_momentum_once_a_period():
  """If it fails, O2 moves inside a period, or is never read."""
  tx = optim.scale_by_m3(period=3)
  params = jnp.zeros((4, 3))
  state, seen = tx.init(params), []
  for g in grads_of((4, 3)):
    _, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
    seen.append(np.asarray(state.slow.read))
  assert not seen[0].any() and not seen[2].any()
  for t in range(3, STEPS):
    same = (seen[t] == seen[t - 1]).all()
    assert same == (t % 3 != 0), t


@pytest.mark.parametrize('shape', [(3, 5), (5, 3), (2, 4, 4)])
def test_orthogonalize(shape):
  x = grads_of(shape)[0]
  with jax.enable_x64(True):
    got = np.asarray(optim.orthogonalize(jnp.asarray(x)))
  np.testing.assert_allclose(got, oracle.newton_schulz(x), atol=1e-10)
  values = np.linalg.svd(got, compute_uv=False)
  assert values.min() > 0.3 and values.max() < 1.3


def test_zero_and_nan_stay_where_they_are():
  """If it fails, one bad matrix or leaf spoils another."""
  x = np.array(grads_of((3, 4, 4))[0])
  x[0] = 0
  x[1, 2, 2] = np.nan
  o = np.asarray(optim.orthogonalize(jnp.asarray(x)))
  assert not o[0].any() and np.isnan(o[1]).all() and np.isfinite(o[2]).all()

  params = {'bad': jnp.zeros((4, 4)), 'zero': jnp.zeros((4, 4)),
            'good': jnp.zeros((4, 4)), 'bias': jnp.zeros(4)}
  grads = jax.tree.map(jnp.ones_like, params) | {
      'bad': jnp.full((4, 4), jnp.nan), 'zero': jnp.zeros((4, 4))
  }
  for tx in (
      optim.m3(0.1), optim.delta_momentum(0.1), optim.multi_scale_momentum(0.1),
      optim.preconditioned_momentum(0.1), optim.feature_momentum(0.1),
      optim.nonlinear_momentum(0.1), optim.dgd(0.1), optim.deep_momentum(0.1),
      optim.muon(0.1), optim.adamuon(0.1),
  ):
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
      updates, state = step(grads, state, params)
    assert np.isfinite(updates['good']).all()
    assert np.isfinite(updates['bias']).all()
    assert not np.asarray(updates['zero']).any()
    # Where it is shows: a matrix that stood still for ever would not.
    assert np.isnan(updates['bad']).all()


def test_half_life_of_momentum():
  """NL §4.2: at beta 0.9 the last 7 terms carry half, 44 carry 99 %."""
  shares = np.cumsum(0.1 * 0.9 ** np.arange(100))
  assert np.argmax(shares >= 0.5) + 1 == 7
  assert np.argmax(shares >= 0.99) + 1 == 44


def test_bad_options_say_what_would_do():
  for make, words in (
      (lambda: optim.scale_by_delta_momentum(gram='row'), 'vector, matrix'),
      (lambda: optim.scale_by_delta_momentum(normalize='l2'), 'soft, unit'),
      (lambda: optim.scale_by_deep_momentum(objective='mse'), 'dot, l2'),
      (lambda: optim.scale_by_deep_momentum(normalize='l2'), 'soft, unit'),
      (lambda: optim.scale_by_deep_momentum(hidden=(0,)), r'\(0,\)'),
      (lambda: optim.scale_by_feature_momentum(feature='x'), 'signed_sqrt'),
      (lambda: optim.scale_by_nonlinear_momentum(output='x'), 'newton_schulz'),
      (lambda: optim.scale_by_adamuon(rms_over='row'), 'matrix, leaf'),
      (lambda: optim.scale_by_m3(accumulate='mean'), "'ema' or 'sum'"),
      (lambda: optim.scale_by_m3(period=0), 'positive'),
      (lambda: optim.scale_by_m3(period=-3), '-3'),
      (lambda: optim.scale_by_m3(period=1.5), 'positive integer; got 1.5'),
      (lambda: optim.orthogonalize(jnp.eye(2), steps=-1), 'got -1'),
      (lambda: optim.dgd(0.1, fallback='adam'), 'adamw, sgd'),
      (
          lambda: optim.scale_by_multi_scale_momentum(periods=(1, 4, 6)),
          'period 6 .* period 4',
      ),
      (
          lambda: optim.scale_by_multi_scale_momentum(periods=(1, 4)),
          '2, 3 and 3',
      ),
      (lambda: optim.orthogonalize(jnp.ones(3)), r'\(3,\)'),
  ):
    with pytest.raises(ValueError, match=words):
      make()


@pytest.mark.parametrize(
    'make',
    [
        lambda label_fn: optim.m3(0.1, label_fn=label_fn),
        lambda label_fn: optim.muon(0.1, label_fn=label_fn),
        lambda label_fn: optim.adamuon(0.1, label_fn=label_fn),
        lambda label_fn: optim.dgd(0.1, label_fn=label_fn),
        lambda label_fn: optim.nested(
            {'matrix': (optax.sgd(0.1), 1), 'other': (optax.sgd(0.1), 2)},
            label_fn,
        ),
    ],
)
def test_an_unknown_label_is_named_with_its_leaf(make):
  """If it fails, a typing error in a label is found by reading optax."""
  tx = make(lambda params: {'block': {'w': 'matrix', 'b': 'vector'}})
  words = "label 'vector' of leaf 'block/b' must be one of 'matrix', 'other'"
  with pytest.raises(ValueError, match=words):
    tx.init({'block': {'w': jnp.ones((3, 3)), 'b': jnp.ones(3)}})


@pytest.mark.parametrize(
    'tx',
    [
        optim.scale_by_m3(),
        optim.scale_by_muon(),
        optim.scale_by_adamuon(),
        optim.scale_by_nonlinear_momentum(output='newton_schulz'),
        optim.scale_by_delta_momentum(gram='matrix'),
    ],
)
def test_a_matrix_rule_names_the_leaf_that_is_none(tx):
  with pytest.raises(ValueError, match=r"'block/bias' has shape \(3,\)"):
    tx.init({'block': {'w': jnp.ones((3, 3)), 'bias': jnp.ones(3)}})


def test_matrix_labels():
  """If it fails, an embedding is orthogonalised, or a layer's gain is."""
  params = {
      'embedding': jnp.ones((9, 4)),
      'head': jnp.ones((4, 9)),
      'heads_out': jnp.ones((4, 4)),
      'layers': {
          'norm': {'scale': jnp.ones((2, 4))},
          'up': {'kernel': jnp.ones((2, 4, 8)), 'bias': jnp.ones((2, 8))},
      },
  }
  assert optim.matrix_labels(params) == {
      'embedding': 'other',
      'head': 'other',
      'heads_out': 'matrix',
      'layers': {
          'norm': {'scale': 'other'},
          'up': {'kernel': 'matrix', 'bias': 'other'},
      },
  }


# A module that is called `layers`, and is no stack of any.
PLAIN = {
    'layers': {'attention': {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)}},
    'head': jnp.ones((3, 5)),
}


def labels_of_plain(kernel):
  return {
      'layers': {'attention': {'kernel': kernel, 'bias': 'other'}},
      'head': 'other',
  }


@pytest.mark.parametrize(
    'make', [optim.m3, optim.muon, optim.adamuon, optim.dgd]
)
def test_a_matrix_below_layers_is_not_lost_without_a_word(make):
  """If it fails, every matrix of a model whose blocks are in a module called
  `layers` is silently trained by Adam."""
  words = "'layers/attention/kernel' .*stacked=.*label_fn"
  with pytest.warns(UserWarning, match=words):
    make(0.1).init(PLAIN)


@pytest.mark.parametrize(
    ('stacked', 'kernel'),
    [
        ((), 'matrix'),
        ('blocks', 'matrix'),
        ('layers', 'other'),
        (('blocks', 'layers'), 'other'),
        (lambda names: names[0] == 'layers', 'other'),
        (lambda names: False, 'matrix'),
    ],
)
def test_what_is_stacked_can_be_told(stacked, kernel, recwarn):
  """If it fails, the way out that the warning names leads nowhere."""
  assert optim.matrix_labels(PLAIN, stacked=stacked) == labels_of_plain(kernel)
  assert not recwarn.list
  state = optim.m3(0.1, stacked=stacked).init(PLAIN)
  moments = state.inner_states['matrix'].inner_state[0].fast
  assert len(jax.tree.leaves(moments)) == (kernel == 'matrix')


def test_a_stack_does_not_warn(recwarn):
  """If it fails, models that are as they should be are warned of.

  Gains and offsets of a stack are [layers, width], and have their names.
  """
  optim.matrix_labels({
      'layers': {
          'norm': {'scale': jnp.ones((2, 4))},
          'up': {'kernel': jnp.ones((2, 4, 8)), 'bias': jnp.ones((2, 8))},
      }
  })
  assert not recwarn.list


def test_describe():
  """If it fails, what an optimizer takes a leaf for has to be guessed."""
  rows = optim.describe(PLAIN, stacked=()).splitlines()
  assert [row.split()[::len(row.split()) - 1] for row in rows] == [
      ['head', 'other'],
      ['layers/attention/bias', 'other'],
      ['layers/attention/kernel', 'matrix'],
  ]


def test_matrix_labels_of_nnx_and_of_lists():
  """If it fails, NNX models cannot be trained: labels differ by the box.

  NNX gives an optimizer its variables at init and their arrays at update; a
  list of layers is not a stack.
  """

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(9, 4, rngs=rngs)
      self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
      self.lm_head = nnx.Linear(4, 9, rngs=rngs)

    def __call__(self, tokens):
      return self.lm_head(self.layers[0](self.embed(tokens)))

  model = Model(nnx.Rngs(0))
  variables = nnx.state(model, nnx.Param)
  labels = optim.matrix_labels(variables)
  pure = nnx.to_pure_dict(variables)
  assert jax.tree.leaves(labels) == jax.tree.leaves(optim.matrix_labels(pure))
  assert optim.matrix_labels(pure) == {
      'embed': {'embedding': 'other'},
      'layers': {0: {'bias': 'other', 'kernel': 'matrix'}},
      'lm_head': {'bias': 'other', 'kernel': 'other'},
  }
  tokens = jnp.arange(5)
  loss = lambda model: jnp.mean(model(tokens) ** 2)
  optimizer = nnx.Optimizer(model, optim.m3(0.01), wrt=nnx.Param)
  before = loss(model)
  optimizer.update(model, nnx.grad(loss)(model))
  assert loss(model) < before
