"""The report says what the results hold, and not more."""

import base64
import copy
import functools
import html.parser
import json
import operator
import pathlib
import re
from xml.etree import ElementTree

import pytest

from hope_jax.report import page
from hope_jax.report import text as report

ROOT = pathlib.Path(__file__).parents[2]
REPORTS = sorted(ROOT.glob('experiments/results/*.json'))


def values(*pairs):
  return [{'mean': mean, 'error': error} for mean, error in pairs]


def reading(carried, gains):
  """A second reading: losses with the memory carried, and what it gains."""
  first = values(*[(3.125, 0.06)] * 3)
  return {
      'distances': [0, 256, 4096],
      'passages': 16,
      'passage_bytes': 256.0,
      'first': first,
      'reset': first,
      'carried': values(*[(c, 0.05) for c in carried]),
      'control': values((3.125, 0.06), (2.9375, 0.06), (2.875, 0.06)),
      'reset - carried': values(*gains),
      'control - carried': values((0.75, 0.04), (0.25, 0.03), (0.01, 0.02)),
  }


RESULTS = {
    'heldout': {
        'bits_per_byte': 2.6543, 'bytes': 131072.0, 'of_bytes': 612345,
    },
    'baselines': {
        'bigram': 3.5123, 'trigram': 2.5234, 'gzip -9': 1.7345, 'xz -9': 1.5456,
    },
    'curve': [
        {'split': split, 'step': step, 'bytes': step * 2048.0,
         'bits_per_byte': 2.5 + 5.5 / (1 + step / 8) + shift + step % 7 / 40}
        for split, every, shift in (('train', 10, 0.0), ('heldout', 100, 0.1))
        for step in range(every, 301, every)
    ],
    'second_reading': {
        'on': reading(
            (2.375, 2.6875, 2.865), ((0.75, 0.05), (0.4375, 0.04), (0.04, 0.03))
        ),
        'off': reading(
            (3.12, 3.121, 3.122), ((0.005, 0.001), (0.004, 0.001), (0.0, 0.001))
        ),
    },
    'sample': {'prompt': 'def ', 'text': 'f(x):\n  return x < 1 & "two"\n' * 4},
    'training': {
        'architecture': 'hope', 'parameters': 1234567, 'from_step': 0,
        'step': 300, 'steps': 300, 'stopped': 'done', 'bytes': 614400.0,
    },
    'levels': [
        {'name': 'base', 'period': 1, 'updates': 300},
        {'name': 'level_0', 'period': 1, 'updates': 300},
        {'name': 'level_1', 'period': 2, 'updates': 150},
        {'name': 'level_2', 'period': 4, 'updates': 75},
    ],
    'stability': {
        'max_write/max': 0.8765, 'mean_alpha/mean': 0.9971,
        'mean_eta/mean': 0.4321, 'state_norm/max': 12.34, 'grad_norm': 0.56,
    },
    'machine': {
        'device': '2 CPU cores', 'python': '3.11.9', 'jax': '0.10.2',
        'commit': '0123abc',
    },
    'config': {'data': {'sequence_length': 512}, 'workdir': 'runs/quickstart'},
    'seconds': {'training': 201.0, 'total': 262.0},
}


class _Balance(html.parser.HTMLParser):
  """Checks that every element is closed, in order."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'br', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@pytest.mark.parametrize('render', [report.as_text, page.as_html])
def test_the_numbers_are_there(render):
  """If it fails, a reader of the report does not learn what was measured."""
  text = render(RESULTS)
  for number in (
      '2.654', '3.512', '2.523', '1.734', '1.546',  # held out, baselines
      '1,234,567', '614,400', '131,072', '612,345',
      '2.375', '2.688', '2.865', '+0.750 ± 0.050', '3.121',  # second reading
      '300', '150', '75',  # levels
      '0.8765', '0.9971', '0.4321', '12.34',  # stability
  ):
    assert number in text, number
  assert report.verdict(RESULTS['second_reading'])[:60] in text


@pytest.mark.parametrize('path', REPORTS, ids=lambda path: path.stem)
def test_what_was_reported_before_is_reported_still(path):
  """If it fails, the report of an earlier run can no longer be looked at."""
  results = json.loads(path.read_text())
  bits = f'{results["heldout"]["bits_per_byte"]:.3f}'
  assert bits in report.as_text(results) and bits in page.as_html(results)


def test_text_fits_a_terminal():
  """If it fails, tables break on a terminal of 80 columns."""
  assert max(map(len, report.as_text(RESULTS).splitlines())) <= 80


def test_page_stands_alone():
  """If it fails, the page needs a network, or leaks a visit to one."""
  text = page.as_html(RESULTS)
  drawings = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', text)
  # What a drawing names is a namespace or who drew it, and is not fetched.
  rest = text
  for drawing in drawings:
    rest = rest.replace(f'src="data:image/svg+xml;base64,{drawing}"', '')
    svg = base64.b64decode(drawing).decode()
    ElementTree.fromstring(svg)
    assert not re.search(r'href="(?!#)|url\((?!#)|<image|<script', svg)
  assert len(drawings) == 4
  assert not re.search(r'https?:|//|src=|href=|@import|url\(', rest)
  parser = _Balance()
  parser.feed(text)
  assert not parser.open
  # A sample is a program; as markup it would vanish, or run.
  assert 'x &lt; 1 &amp; &#34;two&#34;' in text
  for value in ('2 CPU cores', '0123abc', '0.10.2', 'runs/quickstart'):
    assert value in text


def test_a_picture_says_its_numbers():
  """If it fails, a reader who does not see the pictures learns nothing."""
  told = re.findall(r'<img alt="([^"]*)"', page.as_html(RESULTS))
  assert len(told) == 4
  assert 'Hope 2.654' in told[0] and 'trigram 2.523' in told[0]
  assert 'held out from ' in told[1]
  assert 'carried 2.375 2.688 2.865' in told[2]
  assert 'Memory off' in told[3]


def test_verdict_claims_what_is_clear():
  """If it fails, noise is sold as memory, or a loss as a gain."""
  told = report.verdict(RESULTS['second_reading'])
  assert (
      'with it reset, it costs 0.438 to 0.750 bits per byte less after 0 and'
      ' 256 other bytes, no clear difference after 4,096 other bytes; next to'
      ' the control'
  ) in told
  assert 'differ by 0.005 bits per byte at most' in told
  worse = copy.deepcopy(RESULTS['second_reading'])
  worse['on']['reset - carried'] = values(*[(-0.5, 0.1)] * 3)
  worse['off'] = None
  told = report.verdict(worse)
  assert 'costs 0.500 bits per byte more after 0, 256 and 4,096' in told
  assert 'memory off' not in told


def test_less_to_report():
  """If it fails, a Transformer, a short text or a slow run has no report."""
  results = copy.deepcopy(RESULTS) | {
      'second_reading': None, 'levels': [], 'stability': {}, 'curve': [],
  }
  results['training'].update(step=123, stopped='time')
  for text in (report.as_text(results), page.as_html(results)):
    assert 'too short' in text
    assert 'Time was up' in ' '.join(text.split())


def texts_of(value, path=()):
  """Yields where in the results there are texts."""
  items = value.items() if isinstance(value, dict) else (
      enumerate(value) if isinstance(value, list) else ()
  )
  for key, item in items:
    yield from texts_of(item, (*path, key))
  if isinstance(value, str):
    yield path


@pytest.mark.parametrize(
    'path',
    [p for p in texts_of(RESULTS) if p[0] != 'curve'],
    ids=lambda path: '.'.join(map(str, path)),
)
def test_a_text_is_no_markup(path):
  """If it fails, a name or a path runs as a program in the reader's browser."""
  results = copy.deepcopy(RESULTS)
  group = functools.reduce(operator.getitem, path[:-1], results)
  group[path[-1]] = '<script>alert(1)</script>"\'><img src=x onerror=y>'
  text = page.as_html(results)
  assert '<script' not in text and '<img src=x' not in text


@pytest.mark.parametrize('render', [report.as_text, page.as_html])
def test_a_sample_cannot_command_the_terminal(render):
  """If it fails, an untrained model can clear the screen of its reader."""
  sample = {'prompt': 'a', 'text': '\x1b[2J\x07\x85b'}
  text = render(RESULTS | {'sample': sample})
  assert '\x1b' not in text
  assert '\ufffd[2J\ufffd\ufffdb' in text
