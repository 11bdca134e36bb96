"""The results of the repository, and the READMEs and figures made of them."""

import pathlib
import re

import matplotlib
import pytest

from hope_jax.config import ConfigError
from hope_jax.report import markdown
from hope_jax.studies import grid, runner

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = (
    'ablation', 'formal_languages', 'mad', 'mqar', 'mqar_why', 'needles',
    'optimizers/landscape', 'optimizers/digits', 'optimizers/text',
)


def is_done(study):
  """Whether every cell has a result of these very settings."""
  found = grid.read(study)
  for cell, result in found.items():
    grid.require_same(study, cell, result)
  return bool(found)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_tables_are_rendered_from_their_results(name, monkeypatch):
  """If it fails, a README's table was edited by hand, or is out of date:

    python -m hope_jax.main study --config=experiments/NAME.py --render
  """
  monkeypatch.chdir(ROOT)
  study = grid.load(f'experiments/{name}.py')
  text = pathlib.Path(study.readme).read_text(encoding='utf-8')
  begin, end = runner.markers(study)
  assert text.count(begin) == text.count(end) == 1
  assert text == markdown.replaced(text, begin, end, runner.render(study))


def shown(svg):
  """The texts of a drawing: what does not depend on who drew it."""
  return re.findall(r'>([^<>]*)</text>', svg)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_figures_are_drawn_from_their_results(name, monkeypatch):
  """If it fails, a figure was drawn from other results; command as above.

  Another version of matplotlib may place a line elsewhere by a hair: then the
  texts, among them each number of a heat map, are what is compared.
  """
  monkeypatch.chdir(ROOT)
  study = grid.load(f'experiments/{name}.py')
  for figure, svg in grid.TASKS[study.task].figures(runner.read(study)).items():
    kept = pathlib.Path(study.results, f'{figure}.svg').read_text('utf-8')
    assert shown(kept) == shown(svg) != []
    if f'Matplotlib v{matplotlib.__version__},' in kept:
      assert kept == svg


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_results_are_of_the_experiment_as_it_stands(name, monkeypatch):
  """If it fails, a table shows runs of other settings than the file's."""
  monkeypatch.chdir(ROOT)
  study = grid.load(f'experiments/{name}.py')
  assert is_done(study)
  # And what is compared is what decides: another length is another result.
  longer = [('base.train.steps', '7')]
  other = grid.load(f'experiments/{name}.py', longer)
  with pytest.raises(ConfigError, match='made with other settings'):
    is_done(other)
