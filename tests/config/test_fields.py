"""The listing of all fields, as `--help` and the documentation show it."""

import dataclasses

import pytest

from hope_jax.config import Config, ConfigError, fields


def names(kind, path=''):
  """Yields the dotted name of every field, by another way than `fields`."""
  for field in dataclasses.fields(kind):
    where = f'{path}.{field.name}' if path else field.name
    if dataclasses.is_dataclass(field.default):
      yield from names(type(field.default), where)
    else:
      yield where


def test_every_field_is_listed():
  """If it fails, a field exists that no help mentions."""
  listed = [
      f'{group.path}.{field.name}'.lstrip('.')
      for group in fields.groups(Config) for field in group.fields
  ]
  assert sorted(listed) == sorted(names(Config))


def test_comments_come_from_the_source():
  """If it fails, a field is explained by another field's comment."""
  found = {
      f'{group.path}.{field.name}': field
      for group in fields.groups(Config) for field in group.fields
  }
  chunk = found['model.titans.chunk']
  assert chunk.default == '16' and chunk.kind == 'int'
  assert chunk.range == '[1, 1073741824]'
  assert chunk.comment.startswith('Tokens between two updates of the frozen')
  assert chunk.comment.endswith('One must divide the other.')
  assert found['model.titans.projection_chunk'].comment == ''
  # One at the end of the line.
  rate = found['optimizer.final_learning_rate']
  assert rate.comment == 'of learning_rate'


def test_text_of_a_group_of_a_field_and_of_none():
  """If it fails, `--help_config` shows the wrong part, or too wide a one."""
  text = fields.as_text(Config, 'model')
  assert '--config.model.titans.' in text and '--config.data.' not in text
  text = fields.as_text(Config, 'model.titans.chunk')
  assert 'chunk=16' in text and 'expansion' not in text
  assert '--config.' in fields.as_text(Config, 'workdir')
  with pytest.raises(ConfigError, match="mean 'model.titans'"):
    fields.as_text(Config, 'model.titan')
  assert max(map(len, fields.as_text(Config).splitlines())) <= 80
