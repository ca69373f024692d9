"""A simulated host's files, as a tree below its root: what collectors read of a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from virtpilot.simulator.cgroup import FOLDER, MOUNTS, GroupFile, group_names
from virtpilot.simulator.proc import DISK, NIC, proc_text
from virtpilot.simulator.world import World

_FOLDERS: Final = {
    "sys/block": (DISK,),
    f"sys/class/net/{NIC}": ("device", "speed"),
    "sys/fs/cgroup": ("machine.slice",),
}

_KSM: Final = frozenset(
    f"sys/kernel/mm/ksm/{name}"
    for name in ("run", "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "full_scans")
)


class Moment(NamedTuple):
    """The virtual time, as ns since the epoch and as seconds since the start."""

    now_ns: int
    elapsed_s: float


class HostFiles:
    """One host's files; raises FileNotFoundError for those that it has not, and for all while it has no power."""

    def __init__(self, world: World, host: int, moment: Callable[[], Moment]) -> None:
        self._world = world
        self._host = host
        self._moment = moment

    def read(self, path: str) -> str:
        """Return a file's text."""
        self._check_power(path)
        if path == "proc/self/mountinfo":
            return MOUNTS
        if path.startswith(FOLDER):
            return GroupFile(self._world, self._host, path).read()
        folder, _, rest = path.partition("/")
        if folder == "proc":
            return proc_text(self._world, self._host, rest, *self._moment())
        if path == f"sys/class/net/{NIC}/speed":
            return f"{int(self._world.net[self._host] * 8 / 1_000_000)}\n"
        if path in _KSM:
            return f"{self._world.ksm_run[self._host] if path.endswith('run') else 0}\n"
        raise FileNotFoundError(f"/{path}")

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        self._check_power(path)
        if path == FOLDER:
            return group_names(self._world, self._host)
        if path not in _FOLDERS:
            raise FileNotFoundError(f"/{path}")
        return list(_FOLDERS[path])

    def keep(self, path: str) -> KeptFile | GroupFile:
        """Return a file to be read again and again."""
        if path.startswith(FOLDER):
            return GroupFile(self._world, self._host, path)
        self.read(path)
        return KeptFile(self, path)

    def _check_power(self, path: str) -> None:
        if not self._world.powered[self._host]:
            raise FileNotFoundError(f"/{path}: {self._world.host_names[self._host]} has no power")


class KeptFile:
    """A simulated file that is read again and again."""

    def __init__(self, files: HostFiles, path: str) -> None:
        self._files = files
        self._path = path

    def read(self) -> str:
        """Return what the file says now."""
        return self._files.read(self._path)

    def close(self) -> None:
        """Do nothing: nothing is held."""
