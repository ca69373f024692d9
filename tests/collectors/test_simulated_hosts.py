"""A simulated host offers what the collector reads of a real one, and both halves tell the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot import simulator
from virtpilot.collectors.collector import HostCollector
from virtpilot.model import Sample
from virtpilot.simulator import scenario
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
        ("disk_read_bytes_per_second", "read_bytes_per_second", "vm_disk"),
        ("disk_write_bytes_per_second", "write_bytes_per_second", "vm_disk"),
        ("net_receive_bytes_per_second", "receive_bytes_per_second", "vm_net"),
        ("net_transmit_bytes_per_second", "transmit_bytes_per_second", "vm_net"),
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
    for sample, of_host in ((disk, "disk_utilisation_ratio"), (nic, "net_utilisation_ratio")):
        assert 0 < sample.fields["utilisation_ratio"] < 1
        assert host.fields[of_host] == sample.fields["utilisation_ratio"]
    assert (
        host.fields["cpu_overcommit_ratio"] == host.fields["vcpus_allocated_count"] / fleet.facts(fleet.hosts[0]).cpus
    )
