"""The table of block sizes against the counts that it is made from."""

import json
import pathlib

import pytest

from hope_jax.kernels.dgd.tpu import block_sizes

RESULTS = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'results'
DEVICES = {
    'v4': 'TPU v4', 'v5e': 'TPU v5 lite', 'v5p': 'TPU v5',
    'v6e': 'TPU v6 lite', 'TPU7x': 'TPU7x',
}


@pytest.mark.parametrize('chip', DEVICES)
def test_the_table_is_what_was_counted(chip):
  """If this fails, a block size was set that no count speaks for."""
  report = json.loads((RESULTS / 'tpu_tuning.json').read_text())
  total = {}
  for row in report['rows']:
    if row['chip'] == chip:
      key = row['tile'], row['rows']
      total[key] = total.get(key, 0) + row['bundles_per_token_head']
  assert len(total) == 8  # two tiles, four numbers of rows
  most = 1.01 * min(total.values())
  tile, rows = min(key for key, count in total.items() if count <= most)
  device = block_sizes.CHIPS[DEVICES[chip]]
  assert (device.tile, device.rows) == (tile, rows)
