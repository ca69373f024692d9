#!/usr/bin/env bash
# Runs the tests that need no server on each supported Python that this machine has, each in a venv of its own
# (.venv-3.11 …, made once). Arguments go to pytest. PYTHONS="3.12 3.13" asks for these alone.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

say() { printf '%s\n' "virtpilot: $*" >&2; }

# A pyenv shim answers to a name whose version is not switched on: only what really runs counts.
is_python() { [ -x "$1" ] && [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]; }

find_python() {
  local version=$1 candidate
  while read -r candidate; do
    is_python "$candidate" "$version" && { printf '%s\n' "$candidate"; return 0; }
  done < <(type -aP "python$version"; compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python$version" | sort -Vr)
  return 1
}

passed=() failed=() absent=()
for version in ${PYTHONS:-3.11 3.12 3.13}; do
  python=$(find_python "$version") || { absent+=("$version"); continue; }
  say "tests on $("$python" --version) ($python)"
  if PYTHON=$python VENV=.venv-$version deploy/bootstrap.sh dev \
    && ".venv-$version/bin/python" -m pytest -m "not server and not lab" -p no:cacheprovider "$@"; then
    passed+=("$version")
  else
    failed+=("$version")
  fi
done
say "passed on: ${passed[*]:-none}; failed on: ${failed[*]:-none}; not on this machine: ${absent[*]:-none}"
[ ${#failed[@]} -eq 0 ] && [ ${#passed[@]} -gt 0 ]
