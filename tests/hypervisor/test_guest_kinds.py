"""What only some kinds of guests have, on the real drivers: LXC containers, and QEMU guests with an agent inside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Final

import pytest

from deploy import lab as lab_module
from deploy.lab import GuestPlan, Lab
from deploy.lab.container import Container, lacking
from tests.collectors.trees import TextTree
from tests.lab.lab_process import need_a_lab
from tests.services import until
from virtpilot.clock import SECOND, SystemClock
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.rates import MIN_ELAPSED_NS
from virtpilot.errors import HypervisorError, KnobUnsupported, Unsupported
from virtpilot.fields import FIELDS
from virtpilot.hypervisor import GuestState, GuestStats
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.model import Sample

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NAME: Final = "kindtest"
PLANS: Final = (GuestPlan("inside", "host-1", agent=True),)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One real host with a guest that has an agent."""
    need_a_lab()
    needs = [*lacking(), *([] if shutil.which("qemu-ga", path="/usr/sbin:/usr/bin") else ["package qemu-guest-agent"])]
    if needs:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"this needs {', '.join(needs)}")
    with lab_module.bring_up(NAME, plans=PLANS) as up:
        yield up
    assert lab_module.leftovers(NAME) == []


@pytest.fixture(scope="module")
def container(lab: Lab) -> Iterator[Container]:
    made = Container(lab.hosts["host-1"], "box")
    made.start()
    yield made
    if "box" in made.virsh.running():
        made.destroy()


@pytest.fixture
def containers(container: Container) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor(container.uri, clock=SystemClock())
    yield made
    made.close()


@pytest.fixture
def machines(lab: Lab) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor(
        lab.hosts["host-1"].uri, clock=SystemClock(), dirty_rate_every_s=2.0, guest_agent_every_s=1.0
    )
    yield made
    made.close()


def only(hypervisor: LibvirtHypervisor) -> GuestStats:
    (guest,) = hypervisor.guests()
    return guest


def measured(hypervisor: LibvirtHypervisor, enough: str, *kinds: str) -> list[Sample]:
    """Return the samples of the first tick in which the guest has that field, and each of those kinds is told."""
    clock = SystemClock()
    collector = HostCollector(
        hypervisor, TextTree(), {"cluster": "c", "host": "h"}, frozenset({0}), monotonic_ns=clock.monotonic_ns
    )
    found: list[Sample] = []

    def has() -> bool:
        found[:] = collector.collect(clock.now_ns())
        return any(enough in sample.fields for sample in found if sample.measurement == "vm") and (
            {sample.measurement for sample in found}.issuperset(kinds)
        )

    # Readings closer together than MIN_ELAPSED_NS make no rate.
    assert until(has, 20, every_s=4 * MIN_ELAPSED_NS / SECOND)
    return found


def test_a_container_is_measured_from_its_cgroups(container: Container, containers: LibvirtHypervisor) -> None:
    samples = [sample for sample in measured(containers, "cpu_usage_ratio") if sample.measurement != "host"]
    by_kind = {sample.measurement: sample for sample in samples if sample.tags["vm"] == container.uuid}
    vm = by_kind["vm"].fields
    assert (vm["state_code"], vm["vcpus_count"], vm["age_seconds"]) == (1, 1, 0)
    assert (vm["memory_max_bytes"], vm["memory_balloon_bytes"]) == (64 * 2**20, 64 * 2**20)
    assert 0 <= vm["cpu_usage_ratio"] < 1.5
    used_s = vm["cpu_time_seconds_total"]
    assert until(lambda: int(only(containers).stats["cpu.time"]) / SECOND > used_s, 20)
    assert 0 < vm["memory_rss_bytes"] < 64 * 2**20
    assert "swap_in_bytes_total" not in vm  # what LXC tells under that name is something else
    assert {"vm", "vm_disk", "vm_net", "knob"} == by_kind.keys()
    assert by_kind["vm_disk"].tags["disk"] == "all"
    assert by_kind["vm_net"].tags["nic"].startswith("vnet")
    assert {(sample.measurement, name) for sample in samples for name in sample.fields} <= FIELDS.keys()


def test_a_containers_limits_and_shares_show_up_and_what_lxc_cannot_is_refused(
    container: Container, containers: LibvirtHypervisor
) -> None:
    container.virsh("schedinfo", "box", "--live", "vcpu_quota=50000")
    containers.set_knob(container.uuid, "cpu_shares", 3072)
    assert containers.get_knob(container.uuid, "cpu_shares") == 3072
    assert only(containers).details.guest.items() >= {"cpu_shares_count": 3072, "cpu_limit_ratio": 0.5}.items()
    with pytest.raises(KnobUnsupported):
        containers.set_knob(container.uuid, "patience", 5)
    with pytest.raises(Unsupported, match="LXC has no live migration"):
        containers.migrate(container.uuid, "qemu+tcp://127.0.0.9:9/system")
    assert containers.state(container.uuid) is GuestState.RUNNING


def test_a_container_that_is_paused_or_off_is_told_as_such(container: Container, containers: LibvirtHypervisor) -> None:
    container.virsh("suspend", "box")
    assert only(containers).stats["state.state"] == 3
    container.virsh("resume", "box")
    run = only(containers).run
    container.destroy()
    off = only(containers)
    assert (off.stats["state.state"], off.run, off.knobs) == (5, -1, {})
    assert off.stats["balloon.maximum"] == 64 * 1024
    assert "cpu.time" not in off.stats
    # Asked for this, libvirt 9.0 would crash.
    with pytest.raises(HypervisorError, match="not running"):
        containers.set_knob(container.uuid, "cpu_shares", 2048)
    with pytest.raises(KnobUnsupported, match="just now"):
        containers.get_knob(container.uuid, "cpu_shares")
    container.virsh("start", "box")
    assert only(containers).run != run


def test_file_systems_come_from_the_agent_inside(lab: Lab, machines: LibvirtHypervisor) -> None:
    assert until(lambda: only(machines).details.filesystems, 30)
    assert only(machines).details.filesystems.keys() == {"/data"}
    numbers = only(machines).details.filesystems["/data"]
    assert 6 * 2**20 < numbers["total_bytes"] <= 8 * 2**20
    assert 0 < numbers["used_bytes"] < numbers["total_bytes"]


def test_dirty_rate_is_measured_and_read(lab: Lab, machines: LibvirtHypervisor) -> None:
    assert until(lambda: "memory_dirty_bytes_per_second" in only(machines).details.guest, 30)
    guest = only(machines).details.guest
    assert 0 <= guest["memory_dirty_bytes_per_second"] < 128 * 2**20
    assert 0 <= guest["memory_dirty_age_seconds"] < 6


def test_everything_a_guest_can_have_is_told_and_declared(lab: Lab, machines: LibvirtHypervisor) -> None:
    virsh = lab.hosts["host-1"].virsh
    virsh("perf", "inside", "--enable", "task_clock,page_faults,context_switches", "--live")
    virsh("iothreadadd", "inside", "1", "--live")
    virsh("domblkthreshold", "inside", "vda", "12345")
    samples = measured(machines, "disks_read_bytes_per_second", "vm_perf", "vm_iothread")
    kinds = {sample.measurement: sample.fields for sample in samples}
    assert kinds.keys() == {"host", "vm", "vm_vcpu", "vm_disk", "vm_net", "vm_perf", "vm_iothread", "knob"} | (
        kinds.keys() & {"vm_filesystem"}
    )
    assert kinds["vm_perf"]["task_clock_seconds_total"] > 0
    assert kinds["vm_iothread"]["poll_max_seconds"] == 32768 / SECOND
    assert kinds["vm_disk"]["threshold_bytes"] == 12345
    assert {"state_reason_code", "memory_disk_caches_bytes", "minor_faults_total", "memory_stats_age_seconds"} <= (
        kinds["vm"].keys()
    )
    assert 0 <= kinds["vm"]["memory_stats_age_seconds"] < 30
    assert {(sample.measurement, name) for sample in samples for name in sample.fields} <= FIELDS.keys()
