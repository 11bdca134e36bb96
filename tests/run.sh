#!/usr/bin/env bash
# Tests, lints and type-checks hope_jax, in a virtual environment that it keeps beside the
# code. Needs Python 3.11 or newer, and a network the first time.
#
#   tests/run.sh                          everything but the slow tests
#   tests/run.sh --all                    everything
#   tests/run.sh tests/kernels -k state   arguments go to pytest
#
# HOPE_PYTHON, HOPE_VENV and HOPE_EXTRAS: see launch/environment.sh.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"

arguments=()
for argument in "$@"; do
  if [[ $argument == --all ]]; then
    arguments+=(-m '')
  else
    arguments+=("$argument")
  fi
done

prepare dev
cd "$ROOT"
failed=0
# One worker a core, four at most: each compiles, and needs up to 4 GB. What the tests of a
# file compile is compiled once where one worker has them all.
"$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile ${arguments[@]+"${arguments[@]}"} || failed=$?
"$PYTHON" -m ruff check --quiet --output-format concise . || failed=1
# It comes with its own node and asks no network whether it is the newest.
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$PYTHON" -m pyright --pythonpath "$PYTHON" || failed=1
exit "$failed"
