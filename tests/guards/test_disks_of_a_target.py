"""Which disks a target is to have, and what its libvirt says to that: by pools of its own, or by a look at a folder."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Final

import pytest
from defusedxml.ElementTree import fromstring

from virtpilot.errors import HypervisorError
from virtpilot.libvirt_target_disks import Disk, lacking_disks, read_disks

SHARED: Final = "/srv/shared/web-1.raw"
XML: Final = f"""<domain><devices>
<disk type='file' device='disk'><source file='{SHARED}'/><target dev='vda'/></disk>
<disk type='file' device='disk'><source file='/srv/own/web-1.raw'/><target dev='vdb'/></disk>
<disk type='volume' device='disk'><source pool='fast' volume='web-1'/><target dev='vdc'/></disk>
<disk type='block' device='disk'><source dev='/dev/sdz'/><target dev='vdd'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='pool/web-1'/><target dev='vde'/></disk>
<disk type='file' device='cdrom'><target dev='hda'/></disk>
<disk type='file' device='cdrom'><source file='/srv/iso/a.iso' startupPolicy='optional'/><target dev='hdb'/></disk>
<disk type='file' device='cdrom'><source file='/srv/iso/b.iso'/><target dev='hdc'/><readonly/></disk>
</devices></domain>"""


class LibvirtError(Exception):
    def __init__(self, code: int, number: int = 0) -> None:
        super().__init__(f"error {code}")
        self._code, self._number = code, number

    def get_error_code(self) -> int:
        return self._code

    def get_int1(self) -> int:
        return self._number


BINDING: Final = SimpleNamespace(
    libvirtError=LibvirtError, VIR_ERR_NO_STORAGE_POOL=49, VIR_ERR_NO_STORAGE_VOL=50, VIR_ERR_SYSTEM_ERROR=38
)


class Pool:
    """A pool that knows of some volumes, and finds more when it looks again."""

    def __init__(self, *known: str, found: tuple[str, ...] = (), active: bool = True, broken: int = 0) -> None:
        self.known, self._found, self._active, self._broken = list(known), found, active, broken
        self.looks = 0
        self.gone = False

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self._active)

    def refresh(self, _flags: int) -> None:
        self.looks += 1
        self.known += self._found

    def storageVolLookupByName(self, name: str) -> str:  # noqa: N802 - libvirt's name
        if self._broken:
            raise LibvirtError(self._broken)
        if name not in self.known:
            raise LibvirtError(BINDING.VIR_ERR_NO_STORAGE_VOL)
        return name

    def destroy(self) -> None:
        self.gone = True


class Target:
    """A libvirt with pools, by name and by folder, and folders with files that no pool tells of."""

    def __init__(self, pools: dict[str, Pool] | None = None, folders: dict[str, list[str]] | None = None) -> None:
        self._pools = pools or {}
        self._folders = folders or {}
        self.refuses = 0
        self.broken = 0
        self.made: list[Pool] = []

    def storageVolLookupByPath(self, path: str) -> str:  # noqa: N802 - libvirt's name
        folder, _, name = path.rpartition("/")
        if folder in self._pools:
            return self._pools[folder].storageVolLookupByName(name)
        raise LibvirtError(BINDING.VIR_ERR_NO_STORAGE_VOL)

    def storagePoolLookupByName(self, name: str) -> Pool:  # noqa: N802 - libvirt's name
        if name not in self._pools:
            raise LibvirtError(BINDING.VIR_ERR_NO_STORAGE_POOL)
        return self._pools[name]

    storagePoolLookupByTargetPath = storagePoolLookupByName  # noqa: N815 - libvirt's name

    def storagePoolCreateXML(self, xml: str, _flags: int) -> Pool:  # noqa: N802 - libvirt's name
        folder = fromstring(xml).findtext("target/path")
        if self.refuses:
            raise LibvirtError(self.refuses)
        if folder not in self._folders:
            raise LibvirtError(BINDING.VIR_ERR_SYSTEM_ERROR, errno.ENOENT)
        self.made.append(Pool(*self._folders[folder], broken=self.broken))
        return self.made[-1]


def lacks(target: Target, *disks: Disk) -> list[str]:
    return list(lacking_disks(BINDING, target, disks))


def file(path: str = SHARED, *, copied: bool = False) -> Disk:
    return Disk(name="vda", path=path, copied=copied)


def test_which_disks_a_target_is_to_have() -> None:
    """Neither what is reached over wires, nor what may be missing."""
    assert read_disks(XML, ["vdb"]) == [
        Disk(name="vda", path=SHARED),
        Disk(name="vdb", path="/srv/own/web-1.raw", copied=True),
        Disk(name="vdc", pool="fast", volume="web-1"),
        Disk(name="hdc", path="/srv/iso/b.iso"),
    ]


@pytest.mark.parametrize("xml", ["", "<domain", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>"])
def test_what_is_no_definition(xml: str) -> None:
    with pytest.raises(HypervisorError, match="not readable"):
        read_disks(xml, [])


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        (Target({"/srv/shared": Pool("web-1.raw")}), False),
        (Target({"/srv/shared": Pool(found=("web-1.raw",))}), False),
        (Target({"/srv/shared": Pool("other")}), True),
        (Target(folders={"/srv/shared": ["web-1.raw"]}), False),
        (Target(folders={"/srv/shared": ["web-2.raw"]}), True),
        (Target(folders={}), True),
    ],
    ids=["in a pool", "new in a pool", "not in a pool", "in a folder", "not in a folder", "no folder"],
)
def test_a_file_that_is_said_to_be_shared_must_be_there(target: Target, missing: bool) -> None:
    assert lacks(target, file()) == ([f"the disk vda, {SHARED}"] if missing else [])
    assert all(pool.gone for pool in target.made)


@pytest.mark.parametrize(
    ("target", "lack"),
    [
        (Target({"/srv/shared": Pool()}), []),
        (Target(folders={"/srv/shared": ["web-1.raw"]}), []),
        (Target(folders={"/srv/shared": []}),
         [f"a place for a copy of the disk vda: neither {SHARED} nor a storage pool of its folder"]),
    ],
)  # fmt: skip
def test_a_copy_needs_a_file_or_a_pool_to_be_made_in(target: Target, lack: list[str]) -> None:
    assert lacks(target, file(copied=True)) == lack


@pytest.mark.parametrize(
    ("pools", "copied", "lack"),
    [
        ({"fast": Pool("web-1")}, False, []),
        ({"fast": Pool(found=("web-1",))}, False, []),
        ({"fast": Pool()}, True, []),
        ({"fast": Pool()}, False, ["the volume web-1 of the pool fast, which is the disk vdc"]),
        ({"fast": Pool(active=False)}, False, ["the storage pool fast of the disk vdc"]),
        ({}, False, ["the storage pool fast of the disk vdc"]),
    ],
)
def test_a_volume_is_asked_of_its_pool(pools: dict[str, Pool], copied: bool, lack: list[str]) -> None:
    assert lacks(Target(pools), Disk(name="vdc", pool="fast", volume="web-1", copied=copied)) == lack


def test_what_the_target_cannot_say_is_no_objection_and_the_next_disk_is_asked_for() -> None:
    """Nobody may make pools there, say."""
    target = Target({"/srv/iso": Pool()})
    target.refuses = 38
    assert lacks(target, file(), file("/srv/iso/b.iso")) == ["the disk vda, /srv/iso/b.iso"]


@pytest.mark.parametrize(
    "path", ["/dev/sda", "/proc/self/mem", "/sys/x/y", "/web-1.raw", "srv/a", "/srv/../a/b", "/srv/a\nb/c"]
)
def test_only_a_plain_folder_is_looked_into(path: str) -> None:
    target = Target()
    assert (lacks(target, file(path)), target.made) == ([], [])


def test_a_look_ends_whatever_is_found() -> None:
    """A daemon may be in trouble."""
    target = Target(folders={"/srv/shared": ["web-1.raw"]})
    target.broken = 38
    assert (lacks(target, file()), [pool.gone for pool in target.made]) == ([], [True])
