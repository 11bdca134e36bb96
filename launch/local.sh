#!/usr/bin/env bash
# Runs hope_jax on this machine, in a virtual environment that it keeps beside
# the code. Needs Python 3.11 or newer, and a network the first time.
#
#   launch/local.sh                                  the quickstart, minutes on a CPU
#   launch/local.sh train --config=experiments/quickstart.py
#   launch/local.sh --help                           everything else
#
# HOPE_PYTHON, HOPE_VENV and HOPE_EXTRAS: see launch/environment.sh.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare ''

if (($# == 0)); then
  # Alone, it writes below the repository, wherever it was called from.
  cd "$ROOT"
  set -- quickstart --config=experiments/quickstart.py
fi
# -P: the code beside this script, not a package of that name in this folder.
exec "$PYTHON" -P -m hope_jax.main "$@"
