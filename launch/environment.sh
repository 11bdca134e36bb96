# shellcheck shell=bash
# Sourced by launch/local.sh and tests/run.sh: finds a Python, keeps the virtual
# environment beside the code up to date, and sets:
#
#   ROOT    the repository
#   PYTHON  the interpreter of the environment
#
# It reads:
#
#   HOPE_PYTHON  the interpreter to build the environment with
#   HOPE_VENV    where the environment lives (default: .venv in the repository)
#   HOPE_EXTRAS  extras of setup.py to install as well, such as cuda or tpu

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${HOPE_VENV:-$ROOT/.venv}
PYTHON=$VENV/bin/python

fail() {
  echo "error: $*" >&2
  exit 2
}

# Says why the interpreter $1 cannot build the environment; nothing if it can.
# A name on the PATH may be a shim of a version that is not there, so it is run.
fault_of() {
  if ! "$1" -c '' >/dev/null 2>&1; then
    echo "$1 does not run"
  elif ! "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$1 is $("$1" --version 2>&1), older than 3.11"
  elif ! "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    echo "$1 has no venv and ensurepip (Debian, Ubuntu: apt install" \
      "$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))"
  fi
}

find_python() {
  local name fault faults=()
  if [[ -n ${HOPE_PYTHON:-} ]]; then
    fault=$(fault_of "$HOPE_PYTHON")
    [[ -z $fault ]] || fail "HOPE_PYTHON: $fault"
    BASE_PYTHON=$HOPE_PYTHON
    return
  fi
  for name in python3.13 python3.12 python3.11 python3 python; do
    command -v "$name" >/dev/null || continue
    fault=$(fault_of "$name")
    if [[ -z $fault ]]; then
      BASE_PYTHON=$name
      return
    fi
    faults+=("$fault")
  done
  ((${#faults[@]})) || faults=("no python on the PATH")
  fail "hope_jax needs Python 3.11 or newer with venv;" \
    "found: $(printf '%s; ' "${faults[@]}")set HOPE_PYTHON to one"
}

# create VERSION: makes the environment with BASE_PYTHON. Empties only what an
# earlier run of this script filled: HOPE_VENV may name any folder.
create() {
  local options=()
  if compgen -G "$VENV/.hope_jax-*" >/dev/null; then
    options=(--clear)
  elif [[ -e $VENV && ! -e $VENV/pyvenv.cfg ]]; then
    fail "$VENV exists and is no virtual environment; set HOPE_VENV"
  elif [[ -x $PYTHON ]]; then
    fail "$VENV holds $("$PYTHON" --version 2>&1), not $1; remove it or set" \
      "HOPE_VENV"
  fi
  echo "Creating $VENV with $1 ($BASE_PYTHON)" >&2
  "$BASE_PYTHON" -m venv ${options[@]+"${options[@]}"} "$VENV" ||
    fail "$BASE_PYTHON could not create $VENV"
}

# prepare EXTRAS: installs hope_jax with these extras of setup.py (comma
# separated, may be empty). Does nothing when the environment already holds them,
# for this setup.py and this interpreter.
prepare() {
  local extras stamp stamps log version fault wanted
  extras=$1${HOPE_EXTRAS:+,$HOPE_EXTRAS}
  extras=${extras#,}
  stamp=$VENV/.hope_jax-${extras:-base}
  stamps=("$stamp")
  [[ -n $extras ]] || stamps=("$VENV"/.hope_jax-*)  # Any extras hold the base.
  log=$VENV/install.log
  if [[ -n ${HOPE_PYTHON:-} || ! -x $PYTHON ]]; then
    find_python
  else
    fault=$(fault_of "$PYTHON")
    [[ -z $fault ]] || fail "$fault; remove $VENV or set HOPE_VENV"
    BASE_PYTHON=$PYTHON
  fi
  version=$("$BASE_PYTHON" --version 2>&1)
  # An editable install points at the code, so moving the code undoes it.
  wanted="$version at $ROOT, setup.py $(cksum <"$ROOT/setup.py")"
  ! grep -qsxF "$wanted" "${stamps[@]}" || return 0

  if [[ ! -x $PYTHON || $("$PYTHON" --version 2>&1) != "$version" ]]; then
    create "$version"
  fi
  echo "Installing hope_jax${extras:+[$extras]} and what it needs, once;" \
    "log: $log" >&2
  if ! "$PYTHON" -m pip install --disable-pip-version-check --use-pep517 \
    --editable "$ROOT${extras:+[$extras]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "installation failed (network? disk?); full log: $log"
  fi
  echo "$wanted" >"$stamp"
}
