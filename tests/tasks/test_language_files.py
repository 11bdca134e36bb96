"""Folders of the published benchmark, as authors and editors leave them."""

import pytest

from hope_jax.tasks import formal_languages as fl
from hope_jax.tasks.language_files import read


def write(folder, files):
  for name, text in files.items():
    (folder / name).write_text(text)
  return str(folder)


PUBLISHED = {
    'train_50.src': '0 1 1\n1 1\n',
    'train_50.tgt': '1 0 1\n0 1\n',
    'valid_50.src': '0 0\n',
    'valid_50.tgt': '1 1\n',
    'test_50.src': '1 0 0 1\n',
    'test_50.tgt': '0 0 0 1\n',
}


def test_the_published_format(tmp_path):
  """If it fails, published data trains another task."""
  splits = read(write(tmp_path, PUBLISHED))
  assert list(splits) == ['train', 'bin0', 'bin1']
  assert splits['train'][0] == fl.Example(
      ('0', '1', '1'), (frozenset('1'), frozenset('0'), frozenset('1'))
  )
  assert splits['bin1'][0].symbols == ('1', '0', '0', '1')


def test_lines_without_spaces_hold_characters(tmp_path):
  """If it fails, the generator's own text files cannot be read."""
  files = {k: v.replace(' ', '') for k, v in PUBLISHED.items()}
  assert read(write(tmp_path, files)) == read(write(tmp_path, PUBLISHED))
  # Shuffle-2 has two characters a target.
  pairs = {**files, 'test_50.src': '([])', 'test_50.tgt': '10110100'}
  (example,) = read(write(tmp_path, pairs))['bin1']
  assert [set(s) for s in example.legal] == [{'10'}, {'11'}, {'01'}, {'00'}]


@pytest.mark.parametrize('separated', [True, False])
def test_what_editors_leave_changes_nothing(tmp_path, separated):
  """If it fails, a space at a line's end makes a line one symbol, silently."""
  plain = {
      k: v if separated else v.replace(' ', '') for k, v in PUBLISHED.items()
  }
  expected = read(write(tmp_path, plain))
  for mark, space, end in (('', ' ', '\n'), ('\ufeff', '', '\r\n')):
    worn = {
        k: mark + v.replace('\n', f'{space}{end}') + end
        for k, v in plain.items()
    }
    assert read(write(tmp_path, worn)) == expected
  tabs = {k: v.replace(' ', '\t') for k, v in plain.items()}
  assert read(write(tmp_path, tabs)) == expected
  blank = {k: '\n' + v.replace('\n', '\n\n') for k, v in plain.items()}
  assert read(write(tmp_path, blank)) == expected


def test_all_files_say_together_what_a_symbol_is(tmp_path):
  """If it fails, a file of strings of one symbol is cut into characters."""
  short = {'valid_50.src': 'ab\n', 'valid_50.tgt': '10\n'}
  (example,) = read(write(tmp_path, {**PUBLISHED, **short}))['bin0']
  assert example == fl.Example(('ab',), (frozenset(('10',)),))


@pytest.mark.parametrize(
    ('changes', 'complaint'),
    [
        ({'valid_50.tgt': '1 1\n1\n'}, 'equally many lines; got 1 and 2'),
        ({'valid_50.tgt': '1 1 1\n'}, 'line 1 .* 3 targets for 2 symbols'),
        ({'test_50.src': '\n'}, 'must have strings'),
        ({'valid_50.src': '0 0\n\n0\n', 'valid_50.tgt': '1 1\n1\n1\n'},
         'line 2 .* 1 targets for 0 symbols'),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, changes, complaint):
  with pytest.raises(ValueError, match=complaint):
    read(write(tmp_path, {**PUBLISHED, **changes}))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match='test_50.tgt, or .*; it has nothing$'):
    read(str(tmp_path))
  with pytest.raises(ValueError, match='there is no such folder'):
    read(str(tmp_path / 'parity'))
  folder = write(tmp_path, PUBLISHED)
  (tmp_path / 'test_50.tgt').write_bytes(b'0 0 0 \xff\n')
  with pytest.raises(ValueError, match='test_50.tgt.* must be UTF-8'):
    read(folder)
  (tmp_path / 'test_50.tgt').unlink()
  with pytest.raises(ValueError, match='must have test_50.tgt; it has test_50'):
    read(folder)


GENERATED = {
    'train_src.txt': '011\n11\n',
    'train_tgt.txt': '101\n01\n',
    'val_src_bin0.txt': '00\n',
    'val_tgt_bin0.txt': '11\n',
    'val_src_bin1.txt': '1001\n',
    'val_tgt_bin1.txt': '0001\n',
}


def test_the_generator_s_own_folder(tmp_path):
  """If it fails, what the benchmark's generator writes has to be renamed."""
  files = tmp_path / 'files', tmp_path / 'generated'
  for folder in files:
    folder.mkdir()
  published = read(write(files[0], PUBLISHED))
  generated = read(write(files[1], GENERATED))
  assert list(generated) == ['train', 'bin0', 'bin1'] and generated == published
  more = {'val_src_bin2.txt': '000\n', 'val_tgt_bin2.txt': '111\n'}
  assert list(read(write(files[1], more)))[-1] == 'bin2'
  (files[1] / 'val_tgt_bin2.txt').unlink()
  with pytest.raises(ValueError, match='must have val_tgt_bin2.txt; it has'):
    read(str(files[1]))
  # The folder above, in which each language has its own.
  with pytest.raises(ValueError, match='; it has files/, generated/$'):
    read(str(tmp_path))
