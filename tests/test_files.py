"""Files that are written whole or not at all."""

import pytest

from hope_jax.files import replacing


@pytest.mark.parametrize(('mode', 'old', 'new'), [
    ('w', 'alt', 'neu é'), ('wb', b'alt', b'\xff')
])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path, mode, old, new):
  """If it fails, an interruption leaves half a file, or one beside it."""
  path = tmp_path / 'file'
  with replacing(str(path), mode) as file:
    file.write(old)
  with pytest.raises(KeyboardInterrupt), replacing(str(path), mode) as file:
    file.write(new)
    raise KeyboardInterrupt
  read = lambda: path.read_bytes() if 'b' in mode else path.read_text('utf-8')
  assert read() == old
  with replacing(str(path), mode) as file:
    file.write(new)
  assert read() == new
  assert [p.name for p in tmp_path.iterdir()] == ['file']
