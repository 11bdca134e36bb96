"""Every Python block of the README runs as written."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).resolve().parents[1] / 'README.md'
BLOCKS = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


@pytest.mark.parametrize('block', BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block):
  """If it fails, the first thing a reader copies does not work."""
  exec(compile(block, str(README), 'exec'), {})
