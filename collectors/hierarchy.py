"""Where the guests' control groups are: mounted hierarchies (cgroup v1, v2, both), and in them libvirt's groups by id.

libvirt names a guest's group `machine-qemu\\x2d5\\x2dweb.scope` where systemd makes it, else `qemu-5-web.libvirt-qemu`;
5 is the domain's id. All else in the name is the guest's own to choose and is not looked at. They are in machine.slice
or machine, or in the partition that the guest's XML names: `web.partition`, `machine.slice/machine-web.slice`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from virtpilot.collectors.tree import Tree

UNIFIED: Final = "unified"
V1: Final = ("cpu", "memory", "blkio")
_MACHINE: Final = "machine"
_PARTITIONS: Final = (".slice", ".partition")  # as systemd makes them, or libvirt itself
_OTHERS: Final = frozenset({"system.slice", "user.slice"})
_MAX_DEPTH: Final = 6
_SCOPE: Final = re.compile(r"machine-(?:qemu|lxc)\\x2d([0-9]{1,10})(?:\\x2d.*)?\.scope", re.DOTALL)
_PLAIN: Final = re.compile(r"(qemu|lxc)-([0-9]{1,10})(?:-.*)?\.libvirt-\1", re.DOTALL)


def parse_mounts(text: str) -> list[tuple[str, str]]:
    """Return each (hierarchy, folder) in a /proc/self/mountinfo, by its controller or as `unified`, in order.

    Of several mounts on one folder the last one is seen; a folder with blanks in its name is none of a hierarchy.
    """
    seen: dict[str, tuple[str, list[str]]] = {}
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        place, kind = left.split(), right.split()
        if separator and len(place) >= 5 and len(kind) >= 3 and "\\" not in place[4]:
            seen[place[4].lstrip("/")] = (kind[0], kind[2].split(","))
    found = []
    for folder, (kind_name, options) in seen.items():
        if kind_name == "cgroup2":
            found.append((UNIFIED, folder))
        elif kind_name == "cgroup":
            found += [(controller, folder) for controller in V1 if controller in options]
    return found


def find_mounts(tree: Tree) -> dict[str, str]:
    """Return where each hierarchy is, from the tree's root; raises OSError.

    A container that has the host's root mounted sees its own hierarchies, the host's, and both under the names that
    they have in the container: only what is there from the host's root on is meant.
    """
    mounted = parse_mounts(tree.read("proc/self/mountinfo"))
    return {hierarchy: folder for hierarchy, folder in mounted if _is_folder(tree, folder)}


def _is_folder(tree: Tree, path: str) -> bool:
    try:
        tree.names(path)
    except OSError:
        return False
    return True


def group_id(name: str) -> int | None:
    """Return the domain id in a group's name, None where it is no guest's."""
    if match := _SCOPE.fullmatch(name):
        return int(match[1])
    match = _PLAIN.fullmatch(name)
    return int(match[2]) if match else None


def find_groups(tree: Tree, mounts: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """Return each guest's group in each hierarchy, by its id; an id that two groups bear is nobody's."""
    found: dict[int, dict[str, str]] = {}
    doubtful = set()
    for hierarchy, folder in mounts.items():
        for number, path in _groups_in(tree, folder):
            own = found.setdefault(number, {})
            if own.setdefault(hierarchy, path) != path:
                doubtful.add(number)
    return {number: paths for number, paths in found.items() if number not in doubtful}


def _groups_in(tree: Tree, folder: str, depth: int = 0) -> Iterator[tuple[int, str]]:
    """Yield the guests' groups below a folder, in libvirt's own partition and in those that guests' XML names."""
    try:
        names = tree.names(folder)
    except OSError:  # this machine puts no guests there
        return
    for name in names:
        number = group_id(name) if depth else None
        if number is not None:
            yield number, f"{folder}/{name}"
        elif depth < _MAX_DEPTH and (name == _MACHINE or name.endswith(_PARTITIONS)) and name not in _OTHERS:
            yield from _groups_in(tree, f"{folder}/{name}", depth + 1)
