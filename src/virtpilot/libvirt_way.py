"""How a guest is moved, in libvirt's own flags and parameters; and which of its disks are on this host alone.

Source: virDomainMigrateFlags, VIR_MIGRATE_PARAM_*, virDomainGetXMLDesc, /proc/self/mounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.action import Stuck, Way
from virtpilot.errors import HypervisorError

_MIB: Final = 1024 * 1024
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
    if disks:
        flags |= binding.VIR_MIGRATE_NON_SHARED_DISK
        params[binding.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(disks)
    return flags, params


def own_disks(xml: str, mounts: str) -> list[str]:
    """Return the guest's disks that no other host can see, by target: files on this host's own file systems.

    What is only read is taken to be there already, and a block device to be shared. Raises HypervisorError for what is
    no definition of a guest.
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
        if fixed and path and name and _kind(path, mounts.splitlines()) not in _SHARED:
            found.append(name)
    return found


def _kind(path: str, mounts: Iterable[str]) -> str:
    """Return the kind of the file system that a file is on; of mounts at one place the last one counts."""
    best, kind = -1, ""
    for line in mounts:
        words = line.split(" ")
        if len(words) < 3:
            continue
        place = words[1].encode("latin-1", "replace").decode("unicode_escape")  # blanks are written \040
        depth = len(Path(place).parts)
        if depth >= best and Path(path).is_relative_to(place):
            best, kind = depth, words[2]
    return kind


def read_mounts() -> str:
    """Return the mounts that this process sees, which are the hypervisor's where it runs beside it."""
    try:
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
