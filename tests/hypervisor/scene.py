"""The scene of the contract, on the simulator and on two real hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from deploy.lab import Lab
from tests.services import until
from virtpilot.clock import SystemClock
from virtpilot.hypervisor import Job, JobState, JobStatus
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.hypervisor import FleetHypervisor
from virtpilot.simulator.scenario import GuestSpec, HostSpec, Scenario

OFF_UUID: Final = "7f0a4d0e-6a56-4e0f-9d3e-1c2b3a495867"
OFF_XML: Final = f"""<domain type='qemu'><name>off</name><uuid>{OFF_UUID}</uuid>
<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>"""
# It is a name for the lab's own bridge.
BLUE_XML: Final = "<network><name>blue</name><forward mode='bridge'/><bridge name='br0'/></network>"
NIC_XML: Final = "<interface type='network'><source network='blue'/><model type='virtio'/></interface>"


class Scene(NamedTuple):
    """A host with a guest that runs, one that is off, one on the network `blue`, and a second host to move to.

    `offer` has the second host have the network too; `wait` lets time pass; `booted` waits until a guest hears what it
    is asked.
    """

    hypervisor: FleetHypervisor | LibvirtHypervisor
    target: FleetHypervisor | LibvirtHypervisor
    running: str
    off: str
    wired: str
    own_uri: str
    target_uri: str
    offer: Callable[[], object]
    wait: Callable[[Callable[[], bool]], bool]
    booted: Callable[[str], object]


@contextmanager
def connection(lab: Lab, host: str = "host-1") -> Iterator[Any]:
    """Open libvirt-python's own connection to a host."""
    import libvirt

    opened = libvirt.open(lab.hosts[host].uri)
    try:
        yield opened
    finally:
        opened.close()


def wire(lab: Lab, guest: str) -> None:
    """Have the first host have the network `blue`, and put a guest on it."""
    with connection(lab) as libvirt:
        libvirt.networkCreateXML(BLUE_XML)
        libvirt.lookupByName(guest).attachDevice(NIC_XML)


def simulated() -> Iterator[Scene]:
    offered: list[str] = []
    fleet = Fleet(
        Scenario(
            name="contract",
            hosts=[
                HostSpec(name=name, cpus=2, memory_mib=4096, networks=networks)
                for name, networks in (("host-1", ["blue"]), ("host-2", offered))
            ],
            guests=[
                GuestSpec(name="mover", host="host-1", vcpus=1, memory_mib=256, tags={"tier": "web"}, cpu_cores=0.5),
                GuestSpec(name="off", host="host-1", vcpus=1, memory_mib=256, running=False),
                GuestSpec(name="wired", host="host-1", vcpus=1, memory_mib=256, networks=["blue"]),
            ],
        )
    )
    running, off, wired = (guest.uuid for guest in fleet.view().guests)
    made = [fleet.hypervisor(host) for host in fleet.hosts]

    def wait(holds: Callable[[], bool]) -> bool:
        for _ in range(120):
            if holds():
                return True
            fleet.advance(0.5)
        return False

    fleet.advance(1)
    own, target = (fleet.migration_uri(host) for host in fleet.hosts)
    yield Scene(
        made[0], made[1], running, off, wired, own, target, lambda: offered.append("blue"), wait, lambda _guest: None
    )


def real(lab: Lab) -> Iterator[Scene]:
    # What libvirtd is late with while other labs come up is no fault here.
    made = [LibvirtHypervisor(lab.hosts[name].uri, clock=SystemClock(), deadline_s=20) for name in ("host-1", "host-2")]
    guest, wired = lab.guests["mover"], lab.guests["stayer"].uuid
    own, target = (lab.hosts[name].uri for name in ("host-1", "host-2"))

    def offer() -> None:
        with connection(lab, "host-2") as libvirt:
            libvirt.networkCreateXML(BLUE_XML)

    yield Scene(
        made[0], made[1], guest.uuid, OFF_UUID, wired, own, target, offer, lambda holds: until(holds, 60),
        lambda _guest: guest.set_load(0),
    )  # fmt: skip
    for hypervisor in made:
        hypervisor.close()
    if lab.where("mover") != "host-1":
        lab.migrate("mover", "host-1")


def ended(scene: Scene, job: Job) -> JobStatus:
    assert scene.wait(lambda: job.poll().state is not JobState.RUNNING)
    return job.poll()
