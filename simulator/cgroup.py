"""The control groups of simulated guests, as Linux writes them under cgroup v2 with systemd."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

from virtpilot.simulator.world import Guest, World

FOLDER: Final = "sys/fs/cgroup/machine.slice"
MOUNTS: Final = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
_PATH: Final = re.compile(re.escape(FOLDER) + r"/machine-qemu\\x2d([0-9]{1,10})\\x2dguest\.scope/([a-z.]+)")


def group_names(world: World, host: int) -> list[str]:
    """Return the names of the groups of the guests that run on a host."""
    runs = world.run[(world.host == host) & world.running].tolist()
    return [f"machine-qemu\\x2d{run}\\x2dguest.scope" for run in runs]


class GroupFile:
    """One file of a guest's group; raises FileNotFoundError where there is none, OSError once the group is gone."""

    def __init__(self, world: World, host: int, path: str) -> None:
        match = _PATH.fullmatch(path)
        self._write = _FILES.get(match[2]) if match else None
        self._world, self._host = world, host
        self._run = int(match[1]) if match else -1
        found = (world.run == self._run).nonzero()[0]
        self._guest = int(found[0]) if found.size else -1
        if self._write is None or self._guest < 0 or not self._there():
            raise FileNotFoundError(f"/{path}")

    def read(self) -> str:
        """Return what the file says now."""
        if self._write is None or not self._there():
            raise OSError(errno.ENODEV, "the group is gone")
        return self._write(self._world, self._guest)

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _there(self) -> bool:
        world, guest = self._world, self._guest
        return bool(world.run[guest] == self._run and world.host[guest] == self._host and world.powered[self._host])


def _pressure(some: Guest | None, full: Guest | None) -> Callable[[World, int], str]:
    """Return a writer of a pressure file; all of a guest's threads wait when each of its vCPUs does."""

    def write(world: World, guest: int) -> str:
        text = ""
        for kind, row, threads in (("some", some, 1.0), ("full", full, float(world.vcpus[guest]))):
            total = 0 if row is None else int(world.guest_total[row, guest] / threads * 1e6)
            text += f"{kind} avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n"
        return text

    return write


def _io(world: World, guest: int) -> str:
    rows = (Guest.READ_BYTES, Guest.WRITE_BYTES, Guest.READ_REQUESTS, Guest.WRITE_REQUESTS)
    read, written, reads, writes = (int(world.guest_total[row, guest]) for row in rows)
    return f"8:0 rbytes={read} wbytes={written} rios={reads} wios={writes} dbytes=0 dios=0\n"


_FILES: Final[dict[str, Callable[[World, int], str]]] = {
    "cpu.pressure": _pressure(Guest.PSI_CPU_SOME, Guest.DELAY),
    "memory.pressure": _pressure(None, None),
    "io.pressure": _pressure(Guest.PSI_IO_SOME, Guest.WAIT),
    "cpu.stat": lambda _world, _guest: "usage_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
    "io.stat": _io,
    "memory.current": lambda world, guest: f"{int(world.rss_bytes[guest])}\n",
    "memory.stat": lambda world, guest: f"anon {int(world.rss_bytes[guest])}\nfile 0\n",
    "memory.max": lambda _world, _guest: "max\n",
    "memory.events": lambda _world, _guest: "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
}
