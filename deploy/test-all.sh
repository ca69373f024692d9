#!/usr/bin/env bash
# Runs the tests that need no server on each supported Python that this machine has, each in a venv of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
ran=0
for version in 3.11 3.12 3.13; do
  python=$(command -v "python$version" || compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python" | tail -n 1 || true)
  [ -n "$python" ] || { echo "virtpilot: no Python $version here, left out" >&2; continue; }
  echo "virtpilot: tests on $("$python" --version)" >&2
  PYTHON=$python VENV=.venv-$version deploy/bootstrap.sh dev
  ".venv-$version/bin/python" -m pytest -m "not server and not lab" "$@"
  ran=$((ran + 1))
done
[ "$ran" -gt 0 ] || { echo "virtpilot: no supported Python found" >&2; exit 1; }
