"""A simulated host offers what the collector reads of a real one, and both halves tell the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot import simulator
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.hierarchy import group_id
from virtpilot.hypervisor import JobState
from virtpilot.model import Sample
from virtpilot.simulator import scenario
from virtpilot.simulator.cgroup import FOLDER
from virtpilot.simulator.fleet import Fleet

DEMO = Path(simulator.__file__).parent / "scenarios" / "demo.toml"


def measured(fleet: Fleet, host: str) -> list[Sample]:
    collector = HostCollector(
        fleet.hypervisor(host),
        fleet.tree(host),
        {"host": host},
        frozenset(range(fleet.facts(host).cpus)),
        monotonic_ns=lambda: 0,
    )
    collector.collect(fleet.now_ns)
    fleet.advance(10)
    samples = collector.collect(fleet.now_ns)
    assert collector.failures == 0
    return samples


@pytest.mark.parametrize(
    ("of_host", "of_device", "measurement"),
    [
        ("disks_read_bytes_per_second", "read_bytes_per_second", "vm_disk"),
        ("disks_write_bytes_per_second", "write_bytes_per_second", "vm_disk"),
        ("nics_receive_bytes_per_second", "receive_bytes_per_second", "vm_net"),
        ("nics_transmit_bytes_per_second", "transmit_bytes_per_second", "vm_net"),
    ],
)
def test_what_passes_through_a_host_is_what_its_guests_move(of_host: str, of_device: str, measurement: str) -> None:
    fleet = Fleet(scenario.load(DEMO))
    host, *others = measured(fleet, fleet.hosts[0])
    moved = sum(sample.fields[of_device] for sample in others if sample.measurement == measurement)
    assert moved > 0
    assert host.fields[of_host] == pytest.approx(moved, rel=0.01)


def test_its_disk_and_its_nic_are_as_full_as_the_scenario_makes_them() -> None:
    fleet = Fleet(scenario.load(DEMO))
    host, disk, nic, *_guests = measured(fleet, fleet.hosts[0])
    assert (disk.tags, nic.tags) == ({"host": fleet.hosts[0], "disk": "sda"}, {"host": fleet.hosts[0], "nic": "eth0"})
    for sample, of_host in ((disk, "disks_utilisation_ratio"), (nic, "nics_utilisation_ratio")):
        assert 0 < sample.fields["utilisation_ratio"] < 1
        assert host.fields[of_host] == sample.fields["utilisation_ratio"]
    assert (
        host.fields["cpu_overcommit_ratio"] == host.fields["vcpus_allocated_count"] / fleet.facts(fleet.hosts[0]).cpus
    )


def test_a_guest_short_of_cpu_is_under_pressure_as_its_vcpus_wait() -> None:
    fleet = Fleet(scenario.load(DEMO))
    fleet.advance(30)
    told = {sample.tags["name"]: sample.fields for sample in measured(fleet, "host-1") if sample.measurement == "vm"}
    starved = told["web-1"]
    assert starved["cpu_steal_ratio"] > 0.3
    assert starved["psi_cpu_full_ratio"] == pytest.approx(starved["cpu_steal_ratio"], rel=0.01)
    assert starved["psi_cpu_full_ratio"] < starved["psi_cpu_some_ratio"] <= 1
    assert starved["cgroup_memory_bytes"] == pytest.approx(starved["memory_rss_bytes"], rel=0.01)


def test_a_guest_that_moves_has_a_new_run_and_a_group_on_its_new_host_only() -> None:
    fleet = Fleet(scenario.load(DEMO))
    fleet.advance(1)
    hosts = {name: fleet.hypervisor(name) for name in fleet.hosts}
    moving = next(guest for guest in hosts["host-1"].guests() if guest.name == "web-1")
    job = hosts["host-1"].migrate(moving.uuid, fleet.migration_uri("host-3"))
    former = fleet.tree("host-1").keep(f"{FOLDER}/machine-qemu\\x2d{moving.run}\\x2dguest.scope/memory.current")
    assert int(former.read()) > 0
    while job.poll().state is JobState.RUNNING:
        fleet.advance(1)
    (moved,) = (guest for guest in hosts["host-3"].guests() if guest.uuid == moving.uuid)
    assert moved.run not in {moving.run, -1}
    with pytest.raises(OSError, match="gone"):
        former.read()
    there = {name: group_id(name) for name in fleet.tree("host-3").names(FOLDER)}
    assert moved.run in there.values()
    assert moving.run not in map(group_id, fleet.tree("host-1").names(FOLDER))
