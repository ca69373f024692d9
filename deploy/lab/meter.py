"""A lab host's own /proc/stat, as a container has one: the time of its CPU that its own processes used, the rest idle.

A script of its own (standard library only, started with -I -S): `meter.py FILE GROUP CPU`. Whatever else runs on the
same core, other hosts of the lab among it, is not the host's: it would look full although its guests had all they need.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

_EVERY_S = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


def used_s(group: Path) -> tuple[float, float]:
    """Return the seconds of user and of system time that a control group has used."""
    if (group / "cpuacct.usage_user").exists():
        user, system = (int((group / f"cpuacct.usage_{part}").read_text()) / 1e9 for part in ("user", "sys"))
        return user, system
    told = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(told["user_usec"]) / 1e6, int(told["system_usec"]) / 1e6


def text(real: str, cpu: int, user_s: float, system_s: float, idle_s: float) -> str:
    """Return the machine's /proc/stat with a host's own times in place of those of all CPUs and of its own."""
    user, system, idle = (int(part * _TICKS) for part in (user_s, system_s, idle_s))
    times = f"{user} 0 {system} {idle} 0 0 0 0 0 0"
    rest = [line for line in real.splitlines() if not line.startswith("cpu")]
    return "\n".join([f"cpu  {times}", f"cpu{cpu} {times}", *rest, ""])


def main(file: Path, group: Path, cpu: int) -> None:
    """Write it anew a few times a second; never returns."""
    began_s, idle_s, pause = time.monotonic(), 0.0, threading.Event()  # noqa: TID251 - a script outside of the package
    handle = os.open(file, os.O_RDWR)
    while True:
        user_s, system_s = used_s(group)
        idle_s = max(idle_s, time.monotonic() - began_s - user_s - system_s)  # noqa: TID251 - likewise
        told = text(Path("/proc/stat").read_text(), cpu, user_s, system_s, idle_s).encode()
        # In one call, and blanks in place of what the one before has had more: a reader never finds half a file.
        os.pwrite(handle, told.ljust(os.fstat(handle).st_size, b"\n"), 0)
        pause.wait(_EVERY_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
