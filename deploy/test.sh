#!/usr/bin/env bash
# Runs every test: those of one process and of real servers by several workers at once, since most wait for a server or
# for a deadline; then the lab's, alone, since they measure what a guest gets of a core. Arguments go to pytest, to both.
# TEST_WORKERS is how many at once (one more than there are cores); with -m among the arguments pytest runs once, alone.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
pytest=(.venv/bin/python -m pytest)
nothing=5  # pytest's status where it found no test
cores=$(nproc)
workers=${TEST_WORKERS:-$((cores < 7 ? cores + 1 : 8))}

for word in "$@"; do
  if [[ $word == -m* ]]; then exec "${pytest[@]}" "$@"; fi
done
"${pytest[@]}" -m "not lab" --numprocesses "$workers" --dist loadscope --no-loadscope-reorder "$@"
first=$?
case $first in 0 | 1 | "$nothing") ;; *) exit "$first" ;; esac
"${pytest[@]}" -m lab "$@"
second=$?
if [ "$first" -eq "$nothing" ]; then exit "$second"; fi
if [ "$second" -eq 0 ] || [ "$second" -eq "$nothing" ]; then exit "$first"; fi
exit "$second"
