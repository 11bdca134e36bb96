"""A study whose cells cost nothing."""

import functools

import pytest

from hope_jax import interrupts
from hope_jax.config import StudyConfig
from hope_jax.studies import grid, tables
from hope_jax.studies.task import Task


@pytest.fixture
def small(tmp_path, monkeypatch):
  """A study of four cells whose task counts how often it runs."""
  calls = []

  def run(config, cell, study):
    del study
    calls.append((config.model.architecture, cell.column, config.train.seed))
    if len(calls) == 3:  # the machine is taken away
      raise interrupts.Stopped('SIGTERM')
    return {'score': len(calls)}

  def scores(results):
    return {'Score': {
        (r['row'], r['column']): str(r['scores']['score']) for r in results
    }}

  task = Task(
      run, functools.partial(tables.render, scores),
      lambda results: {'plot': '<svg/>'},
  )
  monkeypatch.setitem(grid.TASKS, 'count', task)
  readme = tmp_path / 'README.md'
  readme.write_text(
      '# Mine\n\n<!-- results: begin -->\n<!-- results: end -->\nafter\n'
  )
  return calls, StudyConfig(
      task='count', results=str(tmp_path / 'results'),
      rows=(
          {'name': 'B', 'model': {'architecture': 'lstm'}},
          {'name': 'A', 'model': {'titans': {'chunk': 32}}},
      ),
      base={'model': {'dim': 8, 'titans': {'projection_chunk': 32}}},
      columns=('x', 'y'), seeds=(7,),
  )
