"""Setup: every optimizer trains, stops and goes on; what cannot be is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.config import ConfigError
from hope_jax.optim import registry
from hope_jax.train import checkpoint, loop, setup
from tests import standin
from tests.marks import quick

NAMES = list(registry.OPTIMIZERS)


def config_of(name, **groups):
  groups['optimizer'] = {
      'name': name, 'warmup_steps': 1, **groups.get('optimizer', {})
  }
  groups.setdefault('model', {'continuum': {'periods': (1, 2)}})
  groups.setdefault('train', {
      'steps': 4, 'eval_every': 9, 'checkpoint_every': 2, 'log_every': 2,
  })
  return standin.make_config(**groups)


def train(config, **options):
  return loop.train(
      standin.Standin(), standin.Batches(), config, progress=False, **options
  )


def raw(state):
  return [
      np.asarray(jax.random.key_data(x) if x.dtype == state.rng.dtype else x)
      .tobytes()
      for x in jax.tree.leaves(state)
  ]


# One of each kind of state: trees, stacks of matrices, levels, memories, none.
@pytest.mark.parametrize(
    'name', quick(NAMES, ['adamw', 'muon', 'm3', 'deep_momentum', 'dgd'])
)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, name):
  """If it fails, some of an optimizer's state is not in the checkpoint.

  Four steps, and the last two once more from the checkpoint of step 2, where
  level 1 of period 2 has moved once.
  """
  config = config_of(name, workdir=tmp_path)
  whole = train(config)
  again = train(config, checkpoint_step=2)
  assert raw(again.state) == raw(whole.state)
  losses = [r['loss'] for r in whole.history]
  assert np.isfinite(losses).all()
  assert whole.history[-1]['updates/level_1'] == 2


def test_an_optimizer_from_outside(monkeypatch):
  """If it fails, an own optimizer needs changes in the package.

  A function and an entry; two steps, by hand: w <- w - rate (pull w + g).
  """

  def toy(learning_rate, *, pull: float = 0.0):
    def update(updates, state, params=None):
      return jax.tree.map(
          lambda g, p: -learning_rate * (pull * p + g), updates, params
      ), state

    return optax.GradientTransformation(lambda params: (), update)

  monkeypatch.setattr(registry, 'OPTIMIZERS', dict(registry.OPTIMIZERS))
  registry.register('toy', registry.Optimizer(toy, rate=0.1))
  fields = {
      'options': {'pull': 0.5}, 'weight_decay': 0.0, 'warmup_steps': 0,
      'final_learning_rate': 1.0, 'clip_norm': 1e9, 'learning_rate': 0.1,
  }
  config = config_of(
      'toy', optimizer=fields, train={'steps': 2},
      model={'architecture': 'transformer'},
  )
  result = train(config)
  plain = {**fields, 'options': {}, 'weight_decay': 0.0}
  parts = setup.make(
      config_of('sgd', optimizer=plain, model={'architecture': 'transformer'}),
      standin.Standin(),
  )
  batches = standin.Batches()
  with jax.set_mesh(parts.mesh):
    state = parts.create()
    for _ in range(2):
      pulled = jax.tree.map(lambda p: 0.1 * 0.5 * p, state.params)
      state, _ = parts.step(state, next(batches))
      params = jax.tree.map(jnp.subtract, state.params, pulled)
      state = state._replace(params=params)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      result.state.params, state.params,
  )


def test_dgd_changes_the_gradient():
  """If it fails, DGD from the trainer is plain gradient descent.

  The first step of the levels, against the gradient with d + y / N for d: the
  decay of a matrix towards zero along its inputs that makes DGD what it is.
  """
  fields = {'weight_decay': 0.0, 'clip_norm': 1e9, 'warmup_steps': 0}
  moved = {}
  for name in ('dgd', 'sgd'):
    parts = setup.make(config_of(name, optimizer=fields), standin.Standin())
    with jax.set_mesh(parts.mesh):
      before = parts.create()
      level = lambda s: np.array(s.params['layers']['continuum']['level_0'])
      start, scale = level(before), np.array(before.params['layers']['scale'])
      embedding = np.array(before.params['embedding'])
      batch = next(standin.Batches())
      after, metrics = parts.step(before, batch)
      moved[name] = level(after) - start
      rate = float(metrics['learning_rate'])
  # Inputs of the first layer's level 0, the first product of the model.
  x = np.zeros((8, 13, 8))
  for t in range(12):
    x[:, t + 1] = x[:, t] / 2 + embedding[batch['tokens'][:, t]]
  rows = np.tanh(x[:, 1:] * scale[0]).reshape(-1, 8)
  extra = rows.T @ (rows @ start[0]) / len(rows)
  np.testing.assert_allclose(
      moved['dgd'][0] - moved['sgd'][0], -rate * extra, rtol=1e-3, atol=1e-7
  )


def test_a_model_without_dot_general_cannot_have_dgd(tmp_path):
  """If it fails, such a model is trained with something else, silently."""

  class Plain:
    init = standin.Standin().init
    apply = standin.Standin().apply

  config = config_of('dgd', workdir=tmp_path / 'run')
  with pytest.raises(ConfigError, match='^[^\n]*dot_general[^\n]*Plain'):
    loop.train(Plain(), standin.Batches(), config, progress=False)
  with pytest.raises(ConfigError, match='a loss of its own'):
    train(config, loss_fn=lambda params, batch, rng: (jnp.float32(0), {}))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'optimizer',
    [
        {'name': 'm4'},
        {'name': 'm3', 'options': {'perod': 3}},
        # Known only once the parameters are: a leaf that is no matrix.
        {'name': 'nonlinear_momentum', 'options': {'output': 'newton_schulz'}},
    ],
)
def test_a_mistake_costs_nothing(tmp_path, optimizer):
  """If it fails, a workdir belongs to a run that could never begin."""

  class Vector(standin.Standin):

    def init(self, *args, **kwargs):
      variables = super().init(*args, **kwargs)
      return {'params': variables['params'] | {'bias': jnp.zeros(3)}}

  config = standin.make_config(optimizer=optimizer, workdir=tmp_path / 'run')
  with pytest.raises(ConfigError, match='^[^\n]+$'):
    loop.train(Vector(), standin.Batches(), config, progress=False)
  assert not (tmp_path / 'run').exists()


def test_shapes_are_those_of_the_state():
  """If it fails, a plan made ahead of time is of another run."""
  parts = setup.make(config_of('m3'), standin.Standin())
  with jax.set_mesh(parts.mesh):
    state = parts.create()
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.sharding)
        == (b.shape, b.dtype, b.sharding) or pytest.fail(f'{a} {b}'),
        state, parts.shapes,
    )
    lowered = parts.step.lower(parts.shapes, next(standin.Batches()))
  assert lowered.out_info[0].params['embedding'].shape == (16, 8)


def test_levels_with_a_period():
  """If it fails, periods are given to models without levels of that kind.

  A Transformer has none, and periods of in-context levels are in tokens.
  """
  config = standin.make_config()
  assert setup.level_periods(config) == (1, 3)
  for change in (
      {'architecture': 'transformer'},
      {'continuum': {'regime': 'in_context', 'periods': (2, 6),
                     'learning_rates': (0.1, 0.1)}},
  ):
    other = standin.make_config(model=change)
    assert setup.level_periods(other) == ()


def test_an_option_cannot_change_within_a_run(tmp_path):
  """If it fails, a run goes on with another optimizer than it began with."""
  config = config_of('m3', workdir=tmp_path, train={'steps': 1})
  train(config)
  other = config_of(
      'm3', workdir=tmp_path, optimizer={'options': {'period': 3}},
      train={'steps': 1},
  )
  words = 'optimizer.options.period is not given there and 3 here'
  with pytest.raises(ConfigError, match=words):
    checkpoint.claim_workdir(other)
