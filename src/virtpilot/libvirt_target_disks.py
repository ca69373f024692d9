"""Whether the target of a migration has the disks of a guest that are not copied, and a place for those that are.

A file that no storage pool of the target tells of is looked for by a pool of the folder that lasts for that look only:
libvirt has no other way to say what is on its host. Nothing is written to the folder.
Source: virStorageVolLookupByPath, virStoragePoolLookupByTargetPath, virStoragePoolRefresh, virStoragePoolCreateXML.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from secrets import token_hex
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import msgspec
import structlog
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.errors import HypervisorError

log = structlog.get_logger(__name__)

# What is no folder of files, or whose listing opens devices.
_SPECIAL: Final = frozenset({"dev", "proc", "run", "sys"})
# A disk that may be missing is left out by libvirt itself.
_OPTIONAL: Final = frozenset({"optional", "requisite"})


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a guest: a file, or a volume of a pool; `copied`: its content comes with the guest."""

    name: str
    path: str = ""
    pool: str = ""
    volume: str = ""
    copied: bool = False


def read_disks(xml: str, copied: Collection[str]) -> list[Disk]:
    """Return the disks that the target is to have, `copied` among them; raises HypervisorError where none are told.

    Block devices and disks over the network are their host's to reach: nobody can be asked about them.
    """
    try:
        disks = list(fromstring(xml).iterfind("devices/disk"))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise HypervisorError(f"the guest's definition is not readable: {error}") from error
    found = []
    for disk in disks:
        source, target = disk.find("source"), disk.find("target")
        if source is None or source.get("startupPolicy") in _OPTIONAL:
            continue
        name = target.get("dev", "") if target is not None else ""
        path, pool, volume = (source.get(part, "") for part in ("file", "pool", "volume"))
        if path or (pool and volume):
            found.append(Disk(name=name, path=path, pool=pool, volume=volume, copied=name in copied))
    return found


def lacking_disks(binding: Any, target: Any, disks: Collection[Disk]) -> Iterator[str]:
    """Yield the disks that the libvirt `target` does not have; what it cannot say is no objection."""
    for disk in disks:
        try:
            lack = _of_pool(binding, target, disk) if disk.pool else _of_path(binding, target, disk)
        except binding.libvirtError as error:
            log.debug("the target does not say whether it has a disk", disk=disk.name, error=str(error))
            continue
        if lack:
            yield lack


def _of_pool(binding: Any, target: Any, disk: Disk) -> str:
    try:
        pool = target.storagePoolLookupByName(disk.pool)
        if not pool.isActive():
            return f"the storage pool {disk.pool} of the disk {disk.name}"
        known = disk.copied or _holds(binding, pool, disk.volume)
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_STORAGE_POOL:
            return f"the storage pool {disk.pool} of the disk {disk.name}"
        raise
    return "" if known else f"the volume {disk.volume} of the pool {disk.pool}, which is the disk {disk.name}"


def _of_path(binding: Any, target: Any, disk: Disk) -> str:
    path = PurePosixPath(disk.path)
    if not _plain(path) or _volume(binding, target.storageVolLookupByPath, disk.path):
        return ""
    folder = str(path.parent)
    try:
        pool = target.storagePoolLookupByTargetPath(folder)
    except binding.libvirtError as error:
        if error.get_error_code() != binding.VIR_ERR_NO_STORAGE_POOL:
            raise
        if _looked(binding, target, folder, path.name):
            return ""
        if disk.copied:
            return f"a place for a copy of the disk {disk.name}: neither {disk.path} nor a storage pool of its folder"
    else:
        if disk.copied or _holds(binding, pool, path.name):
            return ""
    return f"the disk {disk.name}, {disk.path}"


def _plain(path: PurePosixPath) -> bool:
    """Tell whether a path is one that a folder's listing tells of under this name."""
    parts = path.parts
    return (
        path.is_absolute()
        and len(parts) > 2
        and ".." not in parts
        and parts[1] not in _SPECIAL
        and str(path).isprintable()
    )


def _volume(binding: Any, look_up: Any, what: str) -> bool:
    try:
        look_up(what)
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_STORAGE_VOL:
            return False
        raise
    return True


def _holds(binding: Any, pool: Any, volume: str) -> bool:
    """Tell whether a pool has a volume: what came since its last look is found by another one."""
    if _volume(binding, pool.storageVolLookupByName, volume):
        return True
    pool.refresh(0)
    return _volume(binding, pool.storageVolLookupByName, volume)


def _looked(binding: Any, target: Any, folder: str, name: str) -> bool:
    """Tell whether a file is in a folder of which the target has no pool."""
    root = Element("pool", {"type": "dir"})
    SubElement(root, "name").text = f"virtpilot-look-{token_hex(8)}"
    SubElement(SubElement(root, "target"), "path").text = folder
    try:
        pool = target.storagePoolCreateXML(tostring(root, encoding="unicode"), 0)
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_SYSTEM_ERROR and error.get_int1() == errno.ENOENT:
            return False  # not even the folder is there
        raise
    try:
        return _volume(binding, pool.storageVolLookupByName, name)
    finally:
        pool.destroy()
