"""Which cases of a test run every time, and which with `tests/run.sh --all`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
  """Returns cases for `parametrize`, all but those of `kept` marked slow.

  Compiling is what tests of programs cost: one of each kind runs every time.

  Args:
    cases: values, tuples of values, or what `pytest.param` made.
    kept: some of them; of a `pytest.param`, its id.

  Raises:
    ValueError: a kept one is no case, so that none would run.
  """
  cases = list(cases)
  known = [getattr(case, 'id', case) for case in cases]
  missing = [case for case in kept if case not in known]
  if missing:
    raise ValueError(f'no cases: {missing}; there are {known}')
  return [
      case if name in kept else _slow(case)
      for case, name in zip(cases, known)
  ]


def _slow(case: Any) -> Any:
  if hasattr(case, 'marks'):
    return case._replace(marks=(*case.marks, pytest.mark.slow))
  values = case if isinstance(case, tuple) else (case,)
  return pytest.param(*values, marks=pytest.mark.slow)
