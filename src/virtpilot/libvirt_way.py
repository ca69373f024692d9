"""How a guest is moved, in libvirt's own flags and parameters; and which of its disks are on this host alone.

Source: virDomainMigrateFlags, VIR_MIGRATE_PARAM_*, virDomainGetXMLDesc, /proc/self/mounts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.action import Stuck, Way
from virtpilot.errors import HypervisorError

_MIB: Final = 1024 * 1024
# What the kernel writes in place of a blank, a tab, a new line, a backslash and a number sign.
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
# File systems that one host alone writes to. Of any other nothing is known.
_OWN: Final = frozenset({
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "nilfs2", "ntfs3", "overlay",
    "ramfs", "reiserfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs",
})  # fmt: skip
# File systems that several hosts can see at once.
_SHARED: Final = frozenset({
    "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.sshfs", "gfs2", "gpfs",
    "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
})  # fmt: skip


def order(binding: Any, way: Way, *, persistent: bool, disks: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Return the flags and the parameters of a migration that copies `disks`."""
    flags = binding.VIR_MIGRATE_LIVE | binding.VIR_MIGRATE_ABORT_ON_ERROR
    params: dict[str, Any] = {}
    if way.peer_to_peer:
        flags |= binding.VIR_MIGRATE_PEER2PEER
    if persistent:
        flags |= binding.VIR_MIGRATE_PERSIST_DEST | binding.VIR_MIGRATE_UNDEFINE_SOURCE
    if way.auto_converge:
        flags |= binding.VIR_MIGRATE_AUTO_CONVERGE
    if way.when_stuck is Stuck.POST_COPY:
        flags |= binding.VIR_MIGRATE_POSTCOPY
    if way.connections > 1:
        flags |= binding.VIR_MIGRATE_PARALLEL
        params[binding.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = way.connections
    if way.bandwidth_bytes_s:
        params[binding.VIR_MIGRATE_PARAM_BANDWIDTH] = max(way.bandwidth_bytes_s // _MIB, 1)
        if flags & binding.VIR_MIGRATE_POSTCOPY:  # the other limit does not hold for it
            params[binding.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = params[binding.VIR_MIGRATE_PARAM_BANDWIDTH]
    if disks:
        flags |= binding.VIR_MIGRATE_NON_SHARED_DISK
        params[binding.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(disks)
    return flags, params


def real_path(path: str) -> str | None:
    """Return where a file really is, all links followed; None where this process cannot see it."""
    try:
        return os.path.realpath(path, strict=True)
    except (OSError, ValueError):
        return None


def own_disks(xml: str, mounts: Callable[[], str], real: Callable[[str], str | None] = real_path) -> list[str]:
    """Return the guest's disks that no other host can see, by target: files on this host's own file systems.

    What is only read is taken to be there already, and a block device to be shared. A disk that was copied although
    the target sees it as well would be written over with itself: where that is not known HypervisorError is raised, as
    for what is no definition of a guest. `mounts` is asked after `real`, for a look may mount.
    """
    try:
        devices = fromstring(xml).iterfind("./devices/disk")
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise HypervisorError(f"the guest's definition is not readable: {error}") from error
    found = []
    for disk in devices:
        source, target = disk.find("source"), disk.find("target")
        path = source.get("file", "") if source is not None else ""
        name = target.get("dev", "") if target is not None else ""
        fixed = (
            disk.get("device", "disk") == "disk" and disk.find("readonly") is None and disk.find("shareable") is None
        )
        if fixed and path and name and _is_own(name, path, mounts, real):
            found.append(name)
    return found


def _is_own(name: str, path: str, mounts: Callable[[], str], real: Callable[[str], str | None]) -> bool:
    place = real(path)
    kind = _kind(place, mounts().splitlines()) if place is not None else ""
    if kind in _OWN or kind in _SHARED:
        return kind in _OWN
    where = f"is on a file system of the kind {kind[:32]!r}" if kind else "cannot be seen from here"
    raise HypervisorError(
        f"the disk {name}, {path[:200]}, {where}: whether other hosts see it is not known, so it is not copied; "
        "where all disks are shared, copy_disks = false says so"
    )


def _kind(path: str, mounts: Iterable[str]) -> str:
    """Return the kind of the file system that a file is on; of mounts at one place the last one counts."""
    best, kind = -1, ""
    for line in mounts:
        words = line.split(" ")
        if len(words) < 3:
            continue
        place = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), words[1])
        depth = len(Path(place).parts)
        if depth >= best and Path(path).is_relative_to(place):
            best, kind = depth, words[2]
    return kind


def read_mounts() -> str:
    """Return the mounts that this process sees, which are the hypervisor's where it runs beside it; "" where none."""
    try:
        return os.fsdecode(Path("/proc/self/mounts").read_bytes())
    except OSError:
        return ""
