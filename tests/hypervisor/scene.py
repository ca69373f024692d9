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


class Scene(NamedTuple):
    """A host with a guest that runs, one that is off, and a second host to move to.

    `wait` lets time pass; `booted` waits until a guest hears what it is asked.
    """

    hypervisor: FleetHypervisor | LibvirtHypervisor
    target: FleetHypervisor | LibvirtHypervisor
    running: str
    off: str
    target_uri: str
    wait: Callable[[Callable[[], bool]], bool]
    booted: Callable[[str], object]


@contextmanager
def connection(lab: Lab) -> Iterator[Any]:
    """Open libvirt-python's own connection to host-1."""
    import libvirt

    opened = libvirt.open(lab.hosts["host-1"].uri)
    try:
        yield opened
    finally:
        opened.close()


def simulated() -> Iterator[Scene]:
    fleet = Fleet(
        Scenario(
            name="contract",
            hosts=[HostSpec(name=name, cpus=2, memory_mib=4096) for name in ("host-1", "host-2")],
            guests=[
                GuestSpec(name="mover", host="host-1", vcpus=1, memory_mib=256, tags={"tier": "web"}, cpu_cores=0.5),
                GuestSpec(name="off", host="host-1", vcpus=1, memory_mib=256, running=False),
            ],
        )
    )
    running, off = (guest.uuid for guest in fleet.view().guests)
    made = [fleet.hypervisor(host) for host in fleet.hosts]

    def wait(holds: Callable[[], bool]) -> bool:
        for _ in range(120):
            if holds():
                return True
            fleet.advance(0.5)
        return False

    fleet.advance(1)
    yield Scene(made[0], made[1], running, off, fleet.migration_uri("host-2"), wait, lambda _guest: None)


def real(lab: Lab) -> Iterator[Scene]:
    # What libvirtd is late with while other labs come up is no fault here.
    made = [LibvirtHypervisor(lab.hosts[name].uri, clock=SystemClock(), deadline_s=20) for name in ("host-1", "host-2")]
    uuid = lab.guests["mover"].uuid
    uri, guest = lab.hosts["host-2"].uri, lab.guests["mover"]
    yield Scene(made[0], made[1], uuid, OFF_UUID, uri, lambda holds: until(holds, 60), lambda _guest: guest.set_load(0))
    for hypervisor in made:
        hypervisor.close()
    if lab.where("mover") != "host-1":
        lab.migrate("mover", "host-1")


def ended(scene: Scene, job: Job) -> JobStatus:
    assert scene.wait(lambda: job.poll().state is not JobState.RUNNING)
    return job.poll()
