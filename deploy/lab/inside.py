"""What runs inside a lab host. A script of its own (standard library only, started with -I -S), in two roles.

`hold SPEC`: joins the host's cgroups, makes its namespaces (mount, UTS, network, cgroup), mounts what the host keeps
to itself, says "ready" and stays as a sleeping process whose /proc/PID/ns others enter.
`enter [--group FILE]... [--target PID] [--cwd DIR] -- COMMAND...`: joins cgroups, then the namespaces of PID, then
becomes COMMAND, so the caller's child pid is the command's own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import TypedDict

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWNET = 0x00020000, 0x02000000, 0x04000000, 0x40000000
_SPACES = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWNET
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)


class Spec(TypedDict):
    """What `hold` is told, as JSON."""

    hostname: str
    outer: list[str]
    inner: list[str]
    delegations: list[tuple[str, str]]
    mounts: list[tuple[str, str, str, str]]
    binds: list[tuple[str, str]]


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, fstype: str, *, flags: int = 0, options: str = "") -> None:
    words = [source.encode(), target.encode(), fstype.encode() or None]
    _checked(_LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {source} on {target}")


def join(doors: list[str]) -> None:
    """Move this process into the cgroups whose cgroup.procs files are given."""
    for door in doors:
        Path(door).write_text(str(os.getpid()))


def hold(spec: Spec) -> None:
    """Become the process that keeps a host's namespaces; never returns."""
    join(spec["outer"])
    _checked(_LIBC.unshare(_SPACES), "unshare")
    join(spec["inner"])
    for path, text in spec["delegations"]:
        Path(path).write_text(text)
    _mount("none", "/", "", flags=_MS_REC | _MS_PRIVATE)
    _checked(_LIBC.sethostname(*_text(spec["hostname"])), "sethostname")
    _mount("sysfs", "/sys", "sysfs")  # a network namespace sees its own devices only in a fresh one
    for source, target, fstype, options in spec["mounts"]:
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount(source, target, fstype, options=options)
    for source, target in spec["binds"]:
        _mount(source, target, "", flags=_MS_BIND)
    print("ready", flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606 - no shell is wanted


def _text(value: str) -> tuple[bytes, int]:
    raw = value.encode()
    return raw, len(raw)


def enter(options: argparse.Namespace) -> None:
    """Join cgroups and namespaces and become the command; never returns."""
    join(options.group)
    if options.target:
        root = os.open(f"/proc/{options.target}/root", os.O_RDONLY | os.O_DIRECTORY)
        process = os.pidfd_open(options.target)
        _checked(_LIBC.setns(process, _SPACES), f"enter the namespaces of {options.target}")
        os.fchdir(root)  # in a chroot the namespace's root is not the root that the host was made in
        os.chroot(".")
    os.chdir(options.cwd)
    os.execvp(options.command[0], options.command)  # noqa: S606 - no shell is wanted


def main() -> None:
    """Play the role that the command line names."""
    if sys.argv[1] == "hold":
        hold(json.loads(sys.argv[2]))
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", action="append", default=[])
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--cwd", default="/")
    options = parser.parse_args(sys.argv[2:split])
    options.command = sys.argv[split + 1 :]
    enter(options)


if __name__ == "__main__":
    main()
