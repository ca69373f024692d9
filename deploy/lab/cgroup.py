"""Control groups of the lab: one per host and one for the servers, in every hierarchy of this machine.

They confine a host to a core of its own, and they are how the lab finds each process that it ever started: what a
killed lab left running is still listed in its groups. Both layouts are known: v1 (or hybrid: one mount per
controller) and v2 (one unified mount).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.lab.errors import LabError, LabMissing
from deploy.lab.wait import until

LEAF: Final = "init"  # v2: processes may not sit in a group that hands controllers to children
_SUBTREE: Final = "cgroup.subtree_control"
_V2_CONTROLLERS: Final = ("cpuset", "cpu", "memory", "io", "pids")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy; `options` are what mounts it again, `version` is 1 or 2."""

    path: Path
    version: int
    options: str
    controllers: frozenset[str]


def parse_hierarchies(mountinfo: str, known: frozenset[str]) -> list[Hierarchy]:
    """Return the hierarchies that a /proc/self/mountinfo lists, each once; v2 ones without their controllers."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if not separator or len(fields) < 5 or len(source) < 3:
            continue
        path = Path(fields[4])
        if source[0] == "cgroup2":
            found.setdefault("", Hierarchy(path, 2, "", frozenset()))
        elif source[0] == "cgroup":
            names = [word for word in source[2].split(",") if word in known or word.startswith("name=")]
            if not names:
                continue
            options = ",".join(["none", *names] if names[0].startswith("name=") else names)
            found.setdefault(options, Hierarchy(path, 1, options, frozenset(names)))
    return list(found.values())


def _known_controllers() -> frozenset[str]:
    lines = Path("/proc/cgroups").read_text().splitlines()[1:]
    return frozenset(line.split()[0] for line in lines if line)


def hierarchies() -> list[Hierarchy]:
    """Return this machine's hierarchies; raises LabMissing where neither layout can confine CPUs."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text(), _known_controllers())
    for index, one in enumerate(found):
        if one.version == 2:
            words = (one.path / "cgroup.controllers").read_text().split()
            found[index] = Hierarchy(one.path, 2, "", frozenset(words))
    offered = frozenset[str]().union(*(one.controllers for one in found))
    lacking = {"cpuset", "cpu"} - offered
    if lacking:
        raise LabMissing(f"no cgroup controller {', '.join(sorted(lacking))} is mounted below /sys/fs/cgroup")
    return found


class Group:
    """One group by name, at the top of every hierarchy."""

    def __init__(self, name: str, mounted: Sequence[Hierarchy]) -> None:
        self.name = name
        self._mounted = tuple(mounted)

    @property
    def mounted(self) -> tuple[Hierarchy, ...]:
        """The hierarchies that the group lives in."""
        return self._mounted

    def create(self, *, cpus: str | None = None, shares: int = 1024) -> None:
        """Make the group; `cpus` confines it (cpuset syntax), `shares` weighs it (1024 is a plain task's weight)."""
        for one in self._mounted:
            folder = one.path / self.name
            if one.version == 1:
                folder.mkdir(exist_ok=True)
                _set_v1(one, folder, cpus, shares)
            else:
                _set_v2(one, folder, cpus, shares)

    def doors(self) -> list[Path]:
        """Return the files that a process writes its pid to in order to join."""
        return [_inner(one, self.name) / "cgroup.procs" for one in self._mounted]

    def outer_doors(self) -> list[Path]:
        """Return the same for the group itself: whoever unshares there has it as the root of its cgroup namespace."""
        return [one.path / self.name / "cgroup.procs" for one in self._mounted]

    def delegations(self) -> list[tuple[Path, str]]:
        """Return what to write where, once the group itself is empty, so that groups below it get controllers (v2)."""
        unified = [one for one in self._mounted if _is_unified(one)]
        return [(one.path / self.name / _SUBTREE, _delegation(one)) for one in unified]

    def accounts(self) -> Path:
        """Return the folder whose files tell how much CPU time the group has used; raises LabMissing."""
        for one in self._mounted:
            if _is_unified(one) or "cpuacct" in one.controllers:
                return one.path / self.name
        raise LabMissing("no cgroup controller cpuacct is mounted below /sys/fs/cgroup")

    def pids(self, *, guests_only: bool = False) -> list[int]:
        """Return every live process of the group and of all groups below it; `guests_only`: those below it."""
        found: dict[int, None] = {}
        for one in self._mounted:
            top = one.path / self.name
            for folder in _deepest_first(top):
                if not guests_only or folder not in (top, top / LEAF):
                    found.update(dict.fromkeys(_procs(folder)))
        return [pid for pid in found if pid > 0 and not is_zombie(pid)]

    def busy(self) -> bool:
        """Tell whether any process is in it, one of another pid namespace included (the kernel lists that as 0)."""
        return any(_procs(folder) for one in self._mounted for folder in _deepest_first(one.path / self.name))

    def kill(self, grace_s: float = 3.0, *, guests_only: bool = False) -> None:
        """End the group's processes: by SIGTERM, after `grace_s` by SIGKILL; raises LabError if some survive."""
        _signal_all(self.pids(guests_only=guests_only), signal.SIGTERM)
        try:
            until(lambda: not self.pids(guests_only=guests_only), grace_s, f"processes of {self.name} end")
        except LabError:
            until(lambda: self._killed(guests_only), 10, f"killed processes of {self.name} end", step_s=0.02)

    def _killed(self, guests_only: bool) -> bool:
        pids = self.pids(guests_only=guests_only)
        _signal_all(pids, signal.SIGKILL)
        return not pids

    def remove(self) -> None:
        """Remove the group and all below it, deepest first; raises LabError while a process is in it."""
        until(self._removed, 10, f"cgroup {self.name} is empty")

    def _removed(self) -> bool:
        for one in self._mounted:
            for folder in _deepest_first(one.path / self.name):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:  # busy: a process is still on its way out
                    return False
        return True

    def remains(self) -> list[Path]:
        """Return the group's folders that exist."""
        return [one.path / self.name for one in self._mounted if (one.path / self.name).exists()]


def groups_of(prefix: str, mounted: Sequence[Hierarchy]) -> list[Group]:
    """Return the groups at the top of any hierarchy whose names begin with `prefix`."""
    names = {path.name for one in mounted for path in one.path.glob(f"{prefix}*") if path.is_dir()}
    return [Group(name, mounted) for name in sorted(names)]


def _is_unified(one: Hierarchy) -> bool:
    return one.version == 2 and "cpu" in one.controllers  # in a hybrid layout the controllers live in v1 mounts


def _inner(one: Hierarchy, name: str) -> Path:
    return one.path / name / LEAF if _is_unified(one) else one.path / name


def _delegation(one: Hierarchy) -> str:
    return " ".join(f"+{name}" for name in _V2_CONTROLLERS if name in one.controllers)


def _set_v1(one: Hierarchy, folder: Path, cpus: str | None, shares: int) -> None:
    if "cpuset" in one.controllers:
        own = cpus or (one.path / "cpuset.cpus").read_text().strip()
        (folder / "cpuset.cpus").write_text(own)
        (folder / "cpuset.mems").write_text((one.path / "cpuset.mems").read_text().strip())
    if "cpu" in one.controllers:
        (folder / "cpu.shares").write_text(str(shares))


def _set_v2(one: Hierarchy, folder: Path, cpus: str | None, shares: int) -> None:
    if _is_unified(one):
        (one.path / _SUBTREE).write_text(_delegation(one))
    folder.mkdir(exist_ok=True)
    if not _is_unified(one):
        return
    if cpus is not None:
        (folder / "cpuset.cpus").write_text(cpus)
    (folder / "cpu.weight").write_text(str(weight_of(shares)))
    (folder / LEAF).mkdir(exist_ok=True)


def weight_of(shares: int) -> int:
    """Return the cpu.weight (v2, 1 to 10000) that systemd and runc take for these shares (v1, 2 to 262144)."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142


def _deepest_first(folder: Path) -> Iterator[Path]:
    for parent, _, _ in os.walk(folder, topdown=False):
        yield Path(parent)


def _procs(folder: Path) -> list[int]:
    try:
        return [int(word) for word in (folder / "cgroup.procs").read_text().split()]
    except OSError:  # the group went meanwhile
        return []


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended (gone, or waiting for its parent to look)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
