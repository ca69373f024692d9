"""Real guests moved in every way, and migrations that get nowhere: where the guest runs is read from both libvirtd."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from deploy import lab as lab_module
from deploy.lab import GuestPlan, Lab
from deploy.lab.guest import Guest
from deploy.lab.pilot import LabPilot
from tests.lab.commanding import Commander, commander
from tests.lab.lab_process import need_a_lab
from tests.services import until
from virtpilot.action import Abort, Migrate, Stuck, Way
from virtpilot.model import Outcome, Result

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NAME = "movelab"
PLANS = (GuestPlan("web-1", "host-1"), GuestPlan("web-2", "host-2"))
MIB = 2**20
log = structlog.get_logger(__name__)


@pytest.fixture(scope="module")
def giving() -> Iterator[Commander]:
    """A lab whose agents take commands."""
    need_a_lab()
    with lab_module.bring_up(NAME, plans=PLANS) as lab:
        pilot = LabPilot(lab)
        pilot.start()
        with commander(lab, pilot) as found:
            yield found
    assert lab_module.leftovers(NAME) == []


@pytest.fixture
def guest(giving: Commander) -> Guest:
    found = giving.lab.guest("web-1")
    found.set_dirty(0, timeout_s=60)
    return found


def running(lab: Lab, guest: Guest) -> list[str]:
    """Return the hosts on which libvirt says that the guest runs."""
    return [name for name, host in lab.hosts.items() if guest.name in host.virsh("list", "--name").split()]


def there(giving: Commander, guest: Guest, way: Way) -> tuple[str, str, Migrate]:
    source = giving.lab.where(guest.name)
    target = next(name for name in giving.lab.hosts if name != source)
    return source, target, Migrate(guest=guest.uuid, target=target, uri=giving.lab.hosts[target].uri, way=way)


def moved(giving: Commander, guest: Guest, way: Way) -> Outcome:
    """Move a guest to the other host and back to nowhere: exactly one libvirt must run it in the end."""
    source, target, action = there(giving, guest, way)
    outcome = giving.give(source, action, patience_s=100)
    log.info("moved", way=way, result=outcome.result, reason=outcome.reason, after=outcome.after)
    assert running(giving.lab, guest) == [target if outcome.result is Result.DONE else source]
    return outcome


def test_a_host_put_in_maintenance_is_emptied(giving: Commander, guest: Guest) -> None:
    """By the operator's own command; the controller, its guards and the agents do the rest."""
    lab = giving.lab

    def say(host: str, way: str) -> dict[str, Any]:
        config = lab.folder / "virtpilot" / "operator.toml"
        command = [
            sys.executable,
            "-m",
            "virtpilot.pipeline",
            "maintenance",
            host,
            way,
            "--json",
            "--config",
            str(config),
        ]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        return msgspec.json.decode(done.stdout, type=dict[str, Any])

    def names(host: str) -> set[str]:
        return set(lab.hosts[host].virsh("list", "--name").split())

    assert until(lambda: say("host-1", "on")["left"] == ["web-1"], 60, 1)
    assert until(lambda: names("host-1") == set(), 90, 0.5)
    assert names("host-2") == {"web-1", "web-2"}
    assert until(lambda: say("host-1", "on")["left"] == [], 30, 1)
    assert say("host-1", "off")["on"] is False
    guest.set_load(0)


@pytest.mark.parametrize(
    "way",
    [
        Way(bandwidth_bytes_s=256 * MIB, downtime_s=0.2),
        Way(peer_to_peer=False),
        Way(connections=2, auto_converge=False),
    ],
    ids=["peer to peer", "managed", "parallel"],
)
def test_a_guest_is_moved_as_asked(giving: Commander, guest: Guest, way: Way) -> None:
    done = moved(giving, guest, way)
    assert done.result is Result.DONE, done.reason
    assert done.reason.endswith(", where it is running")
    assert 0 < done.after["downtime_seconds"] < 10
    guest.set_load(0)  # it lives


def test_a_migration_that_never_converges_is_switched_to_post_copy(giving: Commander, guest: Guest) -> None:
    guest.set_dirty(24)
    way = Way(auto_converge=False, when_stuck=Stuck.POST_COPY, bandwidth_bytes_s=8 * MIB, stall_s=8)
    done = moved(giving, guest, way)
    assert done.result is Result.DONE, done.reason
    assert "by post-copy: it does not converge" in done.reason
    guest.set_load(0)


def test_a_migration_that_never_converges_is_aborted_where_that_is_the_policy(giving: Commander, guest: Guest) -> None:
    guest.set_dirty(24)
    failed = moved(giving, guest, Way(auto_converge=False, bandwidth_bytes_s=8 * MIB, stall_s=8))
    assert failed.result is Result.FAILED
    assert failed.reason.startswith("aborted: it does not converge")
    assert "still runs on" in failed.reason
    guest.set_load(0)


def test_an_abort_by_command_leaves_the_guest_on_the_source(giving: Commander, guest: Guest) -> None:
    guest.set_dirty(24)
    source, _target, action = there(giving, guest, Way(auto_converge=False, bandwidth_bytes_s=4 * MIB, stall_s=600))
    under_way = giving.send(source, action)
    virsh = giving.lab.hosts[source].virsh
    assert until(lambda: "Unbounded" in virsh("domjobinfo", guest.name), 30)
    aborted = giving.give(source, Abort(guest=guest.uuid), patience_s=30)
    assert (aborted.result, running(giving.lab, guest)) == (Result.DONE, [source])
    assert until(lambda: bool(giving.of(under_way)), 10)
    assert giving.of(under_way)[-1].reason.startswith("aborted: by command")
    assert "None" in virsh("domjobinfo", guest.name)
    guest.set_load(0)


def refused(giving: Commander, guest: Guest, way: Way) -> str:
    """Return what the target is said to lack: libvirt was not asked to move the guest at all."""
    outcome = moved(giving, guest, way)
    assert (outcome.result, outcome.guard) == (Result.REFUSED, "target"), outcome.reason
    return outcome.reason.partition(" does not offer ")[2]


def test_what_the_target_lacks_is_named_before_libvirt_is_asked(giving: Commander, guest: Guest) -> None:
    """A bridge, a network and a name: once the target has the first two, and the name is free, it is moved."""
    lab = giving.lab
    source, target, _action = there(giving, guest, Way())
    here, other = lab.hosts[source].virsh, lab.hosts[target].virsh
    network, namesake = lab.folder / "blue.xml", lab.folder / "namesake.xml"
    network.write_text("<network><name>blue</name><forward mode='bridge'/><bridge name='br0'/></network>")
    namesake.write_text(
        f"<domain type='qemu'><name>{guest.name}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    )
    other("define", str(namesake))
    _offer(lab, source, network)
    for kind, link in (("bridge", "br9"), ("network", "blue")):
        here("attach-interface", guest.name, kind, link, "--live", "--model", "virtio")
    name = f"the guest's name {guest.name}, which another guest has there"
    assert refused(giving, guest, Way()) == f"{name}, the network blue, the bridge br9"
    _offer(lab, target, network)
    other("undefine", guest.name)
    done = moved(giving, guest, Way())
    assert done.result is Result.DONE, done.reason


def _offer(lab: Lab, host: str, network: Path) -> None:
    lab.hosts[host].run(["ip", "link", "add", "br9", "type", "bridge"])
    lab.hosts[host].run(["ip", "link", "set", "br9", "up"])
    lab.hosts[host].virsh("net-create", str(network))


def test_a_disk_that_only_the_source_can_see_is_copied(giving: Commander, guest: Guest) -> None:
    """The target's own file gets the content; without the copy libvirt would not move the guest at all."""
    lab = giving.lab
    source, target, _action = there(giving, guest, Way())
    inside, noise = "/var/lib/libvirt/images/own.raw", bytes(range(256)) * 4096 * 4
    for name in (source, target):
        lab.hosts[name].path(inside).parent.mkdir(parents=True, exist_ok=True)
    lab.hosts[source].path(inside).write_bytes(noise)
    virsh = lab.hosts[source].virsh
    virsh("attach-disk", guest.name, inside, "vdb", "--driver", "qemu", "--subdriver", "raw", "--live")
    place = f"a place for a copy of the disk vdb: neither {inside} nor a storage pool of its folder"
    assert refused(giving, guest, Way()) == place
    assert refused(giving, guest, Way(copy_disks=False)) == f"the disk vdb, {inside}"
    lab.hosts[target].path(inside).write_bytes(bytes(len(noise)))
    unsafe = moved(giving, guest, Way(copy_disks=False))
    assert (unsafe.result, "unsafe" in unsafe.reason.lower()) == (Result.FAILED, True)
    done = moved(giving, guest, Way())
    assert done.result is Result.DONE, done.reason
    lab.hosts[target].virsh("detach-disk", guest.name, "vdb", "--live")
    assert lab.hosts[target].path(inside).read_bytes() == noise
