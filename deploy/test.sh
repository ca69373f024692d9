#!/usr/bin/env bash
# Runs every test in three parts: what is no lab's by several workers at once, since most of it waits for a server or a
# deadline; then the labs that may stand side by side; then, alone, those that measure what a guest gets of a core.
# Arguments go to pytest, for each part; with -m among them it runs once, by itself. TEST_WORKERS is how many work at
# once (two for each core; one of the labs for each).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
pytest=(.venv/bin/python -m pytest)
nothing=5 # pytest's status where it found no test
cores=$(nproc)
workers=${TEST_WORKERS:-$((cores < 5 ? 2 * cores : 8))}
labs=${TEST_WORKERS:-$((cores < 8 ? cores : 8))} # a guest is emulated: it costs more than it waits
at_once=(--dist loadscope --no-loadscope-reorder --numprocesses)

for word in "$@"; do
  if [[ $word == -m* ]]; then exec "${pytest[@]}" "$@"; fi
done

worst=$nothing
# A part that failed does not keep the others from telling what they find; one that was broken off does.
part() {
  "${pytest[@]}" -m "$@"
  local status=$?
  case $status in
    0) [ "$worst" -ne "$nothing" ] || worst=0 ;;
    1) worst=1 ;;
    "$nothing") ;;
    *) exit "$status" ;;
  esac
}

part "not lab" "${at_once[@]}" "$workers" "$@"
part "lab and not alone" "${at_once[@]}" "$labs" "$@"
part "lab and alone" "$@"
exit "$worst"
