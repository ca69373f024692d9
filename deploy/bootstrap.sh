#!/usr/bin/env bash
# bootstrap.sh run|dev|full|bench|fuzz: makes .venv ready, installing with apt-get what the system lacks (as root or through sudo).
#   run   what `virtpilot demo` needs: no broker, no database, no hypervisor
#   dev   run, and the checks and tests
#   full  dev, and the real servers and libvirt for the tests against them (deploy/packages.txt)
#   fuzz  dev, and the fuzzer
#   bench full, and what the benchmarks measure against
# A second run with nothing changed returns at once. PYTHON names another interpreter, VENV another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-run}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
logs=$(mktemp -d "${TMPDIR:-/tmp}/virtpilot-bootstrap.XXXXXX")
beside=
trap 'rm -rf "$logs"; [ -z "$beside" ] || kill -- "-$beside" 2>/dev/null || true' EXIT

say() { printf '%s\n' "virtpilot: $*" >&2; }

quietly() {
  local log
  log=$(mktemp "$logs/XXXXXX")
  "$@" >"$log" 2>&1 || { local rc=$?; tail -n 25 "$log" >&2; say "failed: $*"; exit "$rc"; }
}

apt_install() {
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then sudo=(sudo); fi
  if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; }; then
    say "missing on this system, please install: $*"
    return 1
  fi
  say "installing with apt-get: $*"
  [ -n "$updated" ] || quietly "${sudo[@]}" apt-get -o Acquire::Retries=3 update -qq
  updated=yes
  local how=(DEBIAN_FRONTEND=noninteractive) options=(-o Acquire::Retries=3)
  # What no loader boots (a container, a chroot) needs no initramfs, and nothing on the disk before the next package comes.
  if ! boots; then
    how+=(INITRD=No)
    options+=(-o Dpkg::Options::=--force-unsafe-io)
  fi
  quietly "${sudo[@]}" env "${how[@]}" apt-get "${options[@]}" install -y -qq --no-install-recommends "$@"
}
updated=
boots() { [ -d /boot/grub ] || [ -d /boot/efi ] || [ -d /boot/loader ] || [ -d /boot/extlinux ] || [ -d /run/systemd/system ]; }

# Debian names the venv and header packages by the interpreter's version; one built by hand brings its own.
python_version() { "$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
has_python() { command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }
has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() { [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; }
for_servers() { [ "$profile" = full ] || [ "$profile" = bench ]; }
# durable-rules comes as source only, for Python 3.11 and 3.12; libvirt-python is always built.
needs_compiler() { for_servers || "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; }

system_for_run() {
  local missing=()
  has_python || { say "Python 3.11 or newer is needed, found: $("$python" --version 2>&1 || echo none)"; exit 1; }
  has_venv || missing+=("python$(python_version)-venv")
  if needs_compiler; then
    command -v gcc >/dev/null || command -v cc >/dev/null || missing+=(gcc libc6-dev)
    has_headers || missing+=("python$(python_version)-dev")
  fi
  [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

system_for_full() {
  local missing=() package
  while read -r package; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done < <(sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' deploy/packages.txt)
  [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}" || say "tests that need them will be skipped"
}

# What is used is compiled when it is first used; most of what is installed never is.
pip_install() {
  quietly "$venv/bin/python" -m pip --disable-pip-version-check --quiet --retries 5 install --no-compile --constraint constraints.txt "$@"
}

python_packages() {
  local wanted=(--editable .)
  # One that was broken off while it was made has no pip yet.
  "$venv/bin/python" -c 'import pip' 2>/dev/null || { say "making $venv"; quietly "$python" -m venv "$venv"; }
  say "installing Python packages into $venv (once)"
  pip_install pip
  [ "$profile" = run ] || wanted+=(--group dev)
  [ "$profile" != fuzz ] || wanted+=(--group fuzz)
  [ "$profile" != bench ] || wanted+=(--group bench)
  pip_install "${wanted[@]}"
}

libvirt_python() {
  if pkg-config --exists libvirt 2>/dev/null; then
    pip_install --editable '.[libvirt]'
  else
    say "no libvirt headers: tests on the real driver will be skipped"
  fi
}

stamp() { cat pyproject.toml constraints.txt deploy/packages.txt deploy/bootstrap.sh "$python_path" 2>/dev/null | sha256sum | cut -c1-32; }

ready() {
  # A larger set-up serves the smaller profiles too.
  local serving=(bench full dev run) done_for
  [ "$profile" != fuzz ] || serving=(fuzz)
  for done_for in "${serving[@]}"; do
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.ready-$done_for" 2>/dev/null)" = "$(stamp)" ]; then return 0; fi
    [ "$done_for" = "$profile" ] && return 1
  done
}

python_path=$(command -v "$python" || true)
if ready; then
  if for_servers; then system_for_full; fi
  exit 0
fi
system_for_run
python_path=$(command -v "$python")
# In a group of its own, to end it when this ends early.
set -m
python_packages &
beside=$!
set +m
if for_servers; then system_for_full; fi
wait "$beside"
beside=
if for_servers; then libvirt_python; fi
stamp >"$venv/.ready-$profile"
