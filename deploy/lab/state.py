"""What a lab leaves written down for other processes: the state file, and how to find and remove all that is left."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from deploy.lab.cgroup import Group, groups_of, hierarchies
from deploy.lab.errors import LabBusy, LabError
from deploy.lab.network import devices_of, remove_devices
from deploy.lab.placement import placed
from deploy.lab.wait import until

RUN: Final = Path("/run/virtpilot-lab")
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,7}")


def check_name(name: str) -> str:
    """Return a lab's name when devices and groups can be named after it; raises LabError."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} cannot name a lab: a letter, then letters and digits, 8 at most, lower case")
    return name


def folder_of(name: str) -> Path:
    """Return the lab's folder."""
    return RUN / check_name(name)


def group_prefix(name: str) -> str:
    """Return what the names of the lab's cgroups begin with."""
    return f"virtpilot-{check_name(name)}-"


def started_at(pid: int) -> str:
    """Return a process's start time in clock ticks since boot, or "" when it has gone: tells a reused pid."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@dataclass
class State:
    """A lab as others may find it; `cores` and `begins_with` tell each host's core and how many guests start there."""

    name: str
    network: str
    owner: int
    owner_started: str
    kept: bool = False
    broker: tuple[str, int] = ("", 0)
    store_url: str = ""
    cores: dict[str, int] = field(default_factory=dict)
    begins_with: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    guests: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def in_use(self) -> bool:
        """Tell whether somebody still wants the lab: its owner lives, or left it up on purpose."""
        return self.kept or (self.owner_started != "" and started_at(self.owner) == self.owner_started)

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        path = _path(self.name)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1))
        fresh.replace(path)


def _path(name: str) -> Path:
    return folder_of(name) / "state.json"


def load(name: str) -> State | None:
    """Return the state of a lab, None when there is none or it was killed before it could write one."""
    try:
        return State(**json.loads(_path(name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def abandoned(name: str) -> bool:
    """Tell whether what is left of a lab is nobody's: its owner was killed, or it is empty and no file tells of it.

    The latter is a lab that was killed where another /run was mounted.
    """
    found = load(name)
    if found is not None:
        return not found.in_use
    return not folder_of(name).exists() and bool(leftovers(name)) and not any(one.busy() for one in _groups(name))


def claim(name: str, network: str, guests: Mapping[str, int]) -> State:
    """Make the lab's folder ours and choose its hosts' cores, given how many guests each begins with.

    Raises LabBusy when a lab of this name is up or something of one is left.
    """
    RUN.mkdir(mode=0o755, exist_ok=True)
    left = leftovers(name)
    if left:
        raise LabBusy(f"a lab named {name!r} is up, or was not removed: `python -m deploy.lab --name {name} down`")
    try:
        folder_of(name).mkdir(mode=0o700)
    except FileExistsError as error:
        raise LabBusy(f"a lab named {name!r} is being brought up by another process") from error
    state = State(name, network, os.getpid(), started_at(os.getpid()), begins_with=dict(guests))
    state.cores = placed(guests, sorted(os.sched_getaffinity(0)), _taken())
    state.save()
    return state


@contextmanager
def one_comes_up(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other lab of this machine comes up: several that boot at once all take as long as all of them."""
    RUN.mkdir(mode=0o755, exist_ok=True)
    folder = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another lab comes up: waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _taken() -> Counter[int]:
    """Return how many guests the labs that are in use began with on each core."""
    taken = Counter[int]()
    for path in RUN.glob("*/state.json"):
        if (found := load(path.parent.name)) is not None and found.in_use:
            for host, core in found.cores.items():
                taken[core] += found.begins_with.get(host, 0)
    return taken


def _groups(name: str) -> list[Group]:
    return groups_of(group_prefix(name), hierarchies())


def tear_down(name: str) -> None:
    """Remove all of a lab, whoever brought it up and in whatever state it is; raises LabError when something stays."""
    groups = _groups(name)
    for group in groups:
        group.kill(guests_only=True)
    for group in reversed(groups):  # the hosts before the servers that their agents talk to
        group.kill()
    remove_devices(name)
    for group in groups:
        group.remove()
    shutil.rmtree(folder_of(name), ignore_errors=True)
    until(lambda: not leftovers(name), 5, f"lab {name!r} is gone, but for {leftovers(name)}")


def leftovers(name: str) -> list[str]:
    """Return whatever of the lab is still on this machine: processes, namespaces, cgroups, devices, mounts, files."""
    found: list[str] = []
    for group in _groups(name):
        found += [f"process {pid} in {group.name}" for pid in group.pids()]
        found += [f"cgroup {path}" for path in group.remains()]
    found += [f"network device {device}" for device in devices_of(name)]
    found += _namespaces(name)
    folder = folder_of(name)
    return [*found, f"folder {folder}"] if folder.exists() else found


def _namespaces(name: str) -> list[str]:
    """A namespace lives as long as a process is in it: look for processes that see the lab's mounts."""
    mark = f"{RUN.name}/{name}/"
    found = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if mark in table.read_text():
                found.append(f"mount namespace of process {table.parent.name}")
        except OSError:  # it ended meanwhile
            continue
    return found
