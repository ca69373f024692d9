"""Which disks a migration copies: those that the target cannot see, and never one of which that is not known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.hypervisor.fake_libvirt import WEB, FakeLibvirt
from tests.services import until
from virtpilot.clock import VirtualClock
from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import JobState
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_way import own_disks, read_mounts, real_path

MOUNTS: Final = """/dev/sda1 / ext4 rw 0 0
filer:/vms /var/lib/libvirt/images nfs4 rw 0 0
/dev/sdb1 /var/lib/libvirt/images/local xfs rw 0 0
x /srv/with\\040blank ceph rw 0 0
filer:/größe /srv/größe nfs4 rw 0 0
filer:/\udcff /srv/\udcff nfs4 rw 0 0
x /srv/new fuse.newfs rw 0 0
x /srv/auto autofs rw 0 0
broken
"""


def disk(path: str, target: str, more: str = "", kind: str = "file") -> str:
    return f"<disk type='{kind}'{more}><source {kind}='{path}'/><target dev='{target}'/></disk>"


def test_disks_that_no_other_host_can_see_are_copied() -> None:
    images = "/var/lib/libvirt/images"
    inside = [
        disk(f"{images}/a.qcow2", "vda"),
        disk(f"{images}/local/b.qcow2", "vdb"),
        disk("/srv/with blank/c.raw", "vdc"),
        disk("/srv/d.raw", "vdd"),
        disk("/cd.iso", "sda", " device='cdrom'"),
        disk("/dev/vg/e", "vde", kind="dev"),
        disk("/srv/f.raw", "vdf").replace("<source", "<readonly/><source"),
        "<disk type='network'><source protocol='rbd' name='p/g'/><target dev='vdg'/></disk><disk/>",
    ]
    assert own_disks(f"<domain><devices>{''.join(inside)}</devices></domain>", lambda: MOUNTS, str) == ["vdb", "vdd"]
    assert own_disks("<domain/>", str) == []
    for hostile in ("", "<domain>", "<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>"):
        with pytest.raises(HypervisorError):
            own_disks(hostile, lambda: MOUNTS)


def only_disk(path: str | Path) -> str:
    return f"<domain><devices>{disk(str(path), 'vda')}</devices></domain>"


@pytest.mark.parametrize("path", ["/srv/größe/a.raw", "/srv/\udcff/a.raw", "/srv/with blank/a.raw"])
def test_a_place_is_found_whatever_its_name_is(path: str) -> None:
    """A shared file system that is overlooked would have its disk copied over itself."""
    xml = only_disk("/any")
    assert own_disks(xml, lambda: MOUNTS, lambda _path: path) == []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/srv/new/a.raw", "of the kind 'fuse.newfs'"),
        ("/srv/auto/a.raw", "of the kind 'autofs'"),
        (None, "cannot be seen"),
    ],
)
def test_what_is_not_known_is_neither_copied_nor_left_out(path: str | None, told: str) -> None:
    with pytest.raises(HypervisorError, match=rf"the disk vda, /any, .*{told}.* copy_disks = false"):
        own_disks(only_disk("/any"), lambda: MOUNTS, lambda _path: path)


def test_without_mounts_nothing_is_known(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.touch()
    with pytest.raises(HypervisorError, match="cannot be seen from here"):
        own_disks(only_disk(image), lambda: "")


def test_links_are_followed_to_where_the_disk_really_is(tmp_path: Path) -> None:
    """A link from a file system of its own into a shared one, and one that leads nowhere."""
    shared, pool = tmp_path / "shared", tmp_path / "pool"
    shared.mkdir()
    (shared / "a.raw").touch()
    pool.symlink_to(shared)
    mounts = f"/dev/sda1 / ext4 rw 0 0\nfiler:/vms {os.path.realpath(shared)} nfs rw 0 0\n"
    assert own_disks(only_disk(pool / "a.raw"), lambda: mounts) == []
    (tmp_path / "b.raw").touch()
    assert own_disks(only_disk(tmp_path / "b.raw"), lambda: mounts) == ["vda"]
    (tmp_path / "c.raw").symlink_to(tmp_path / "nothing")
    assert (real_path(str(tmp_path / "c.raw")), real_path("\0")) == (None, None)


def test_mounts_are_asked_for_once_a_look_may_have_mounted(tmp_path: Path) -> None:
    asked: list[str] = []

    def real(path: str) -> str:
        asked.append("real")
        return path

    def mounts() -> str:
        asked.append("mounts")
        return MOUNTS

    own_disks(only_disk("/srv/d.raw"), mounts, real)
    assert asked == ["real", "mounts"]


def test_this_machines_own_files_are_its_own(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.touch()
    assert own_disks(only_disk(image), read_mounts) == ["vda"]


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("fake:///system", clock=VirtualClock(), binding=libvirt)
    yield made
    made.close()


def test_a_guest_with_such_a_disk_is_not_moved_and_it_is_said_why(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.domains[WEB].xml = only_disk("/nowhere/a.raw")
    job = hypervisor.migrate(WEB, "qemu+tcp://10.0.0.2/system")
    assert until(lambda: job.poll().state is JobState.FAILED, 10)
    assert job.poll().error.startswith("the disk vda, /nowhere/a.raw, cannot be seen from here")
    assert libvirt.migrations == []
