"""The study of optimizers, from the search to the page."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import ConfigError, StudyConfig
from hope_jax.evals import optimizer_problems, optimizer_report, optimizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'experiments/optimizers'
STUDIES = sorted(p.stem for p in FOLDER.glob('results/*.json'))


def test_landscape():
  """Eq. 53 at a point, by hand, and its minimum."""
  r, theta = -3.5, 2.0
  expected = r**2 + 8 * (r - theta + 0.6 * math.sin(6 * r)) ** 2
  got = optimizer_problems.landscape(jnp.float32(r), jnp.float32(theta))
  assert float(got) == pytest.approx(expected, rel=1e-5)
  assert float(optimizer_problems.landscape(0.0, 0.0)) == 0


@pytest.mark.parametrize('best', [1e-4, 0.004, 0.7])
def test_search_finds_the_best_rate_wherever_it_starts(best):
  """If it fails, an optimizer loses for where its search began."""
  tried = optimizers.search(lambda r: abs(math.log(r / best)), 3e-3, 14)
  found = min(tried, key=tried.get)
  assert abs(math.log(found / best)) <= math.log(3) / 4 + 0.01
  assert len(tried) <= 14


def test_search_walks_away_from_what_diverges():
  loss = lambda rate: math.inf if rate > 1e-3 else rate
  assert min(optimizers.search(loss, 1.0, 9)) < 1e-3


@pytest.fixture
def tiny():
  return optimizers.load(f'{FOLDER}/landscape.py:tiny')


def test_a_study_resumes_and_is_the_same(tmp_path, tiny, monkeypatch):
  """If it fails, an interruption costs its runs, or changes the results."""
  with monkeypatch.context() as patch:
    calls = []
    plain = optimizers.Trainer.run

    def interrupted(self, rate, seed):
      calls.append((rate, seed))
      if len(calls) == 4:
        raise KeyboardInterrupt
      return plain(self, rate, seed)

    patch.setattr(optimizers.Trainer, 'run', interrupted)
    with pytest.raises(KeyboardInterrupt):
      optimizers.study(tiny, tmp_path)
    results = optimizers.study(tiny, tmp_path)
    made = len(calls)
    again = optimizers.study(tiny, tmp_path)
    assert len(calls) == made  # nothing is done twice
  assert again['optimizers'] == results['optimizers']
  assert made - 1 == len(list(tmp_path.glob('*-*-*.json')))
  run = results['optimizers']['momentum']['runs'][0]
  assert run['steps'] == 20 and len(run['trace']) == 20
  with pytest.raises(ConfigError, match='another configuration'):
    optimizers.study(StudyConfig(steps=5), tmp_path)


def test_an_unknown_optimizer(tmp_path):
  with pytest.raises(ConfigError, match="'adam' is none of adamw, muon"):
    optimizers.study(StudyConfig(optimizers=('adam',)), tmp_path)


def test_a_rule_follows_its_rate():
  """Momentum SGD by hand on the landscape: the rate is the argument's."""
  config = StudyConfig(steps=3, warmup=0.0, clip_norm=1e9)
  problem = optimizer_problems.problem_of(config)
  trainer = optimizers.Trainer(problem, optimizers.RULES['momentum'], config)
  trace = trainer.run(1e-3, 0)['trace']
  w, m = np.array(optimizer_problems.START), np.zeros(2)
  gradient = jax.grad(lambda w: optimizer_problems.landscape(*w))
  for i, point in enumerate(trace):
    np.testing.assert_allclose(point, w, atol=2e-3)
    m = 0.9 * m + np.asarray(gradient(jnp.asarray(w, jnp.float32)))
    share = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (i + 1) / 3))
    w = w - 1e-3 * share * m


@pytest.mark.parametrize('name', ['digits', 'text'])
def test_the_tiny_forms_run(name, tmp_path):
  """If it fails, the commands in the README do."""
  if name == 'digits':
    pytest.importorskip('sklearn', reason='scikit-learn is not installed')
  config = optimizers.load(f'{FOLDER}/{name}.py:tiny')
  rule = {'digits': 'dgd', 'text': 'm3'}[name]
  some = {'optimizers': (rule,), 'trials': 1}
  results = optimizers.study(
      StudyConfig(**{**vars(config), **some}), tmp_path
  )
  (run,) = results['optimizers'][rule]['runs']
  assert math.isfinite(run['heldout']['loss'])
  assert 'CPU ms a step' in optimizer_report.table(results)


def test_the_paper_s_sizes_are_a_study():
  for form, dim in (('full', 384), ('base', 768)):
    config = optimizers.load(f'{FOLDER}/imagenet.py:{form}')
    assert config.vit.dim == dim and config.images.classes == 10_450


def made_up(**losses):
  runs = lambda values: [
      {'heldout': {'loss': x, 'accuracy': 0.5}, 'train_loss': x,
       'milliseconds': 2.0, 'cpu_milliseconds': 1.0, 'curve': [[1, x]]}
      for x in values
  ]
  return {
      'config': {'task': 'images', 'seeds': [1, 2], 'steps': 3, 'trials': 2},
      'optimizers': {
          name: {'learning_rate': 0.1, 'trials': {'0.1': 1.0}, 'runs': runs(x)}
          for name, x in losses.items()
      },
  }


def test_verdict_says_what_the_numbers_do():
  """If it fails, the page claims what no run shows."""
  good = made_up(m3=[1.0, 1.1], muon=[1.2, 1.3], adamw=[1.4, 1.5])
  text = optimizer_report.verdict(good)
  assert text.count('M3 < Muon < AdamW is seen') == 2 and 'not' not in text
  bad = made_up(m3=[1.0, 1.25], muon=[1.2, 1.3], adamw=[0.4, None])
  text = optimizer_report.verdict(bad)
  assert 'the runs of M3 and Muon overlap' in text and 'is seen' not in text
  assert 'the runs of Muon and AdamW overlap' in text


@pytest.mark.parametrize('name', STUDIES)
def test_the_page_is_made_of_the_results(name):
  """If it fails, README and JSON tell different stories; run optimizer_report.
  """
  results = json.loads((FOLDER / f'results/{name}.json').read_text())
  readme = (FOLDER / 'README.md').read_text()
  assert optimizer_report.render(readme, name, results) == readme
  drawn = (FOLDER / f'results/{name}.svg').read_text()
  assert optimizer_report.drawing(results) == drawn
