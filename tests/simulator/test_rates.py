"""What the fleet's counters grow by follows what happens, also while no guest wants anything else."""

from __future__ import annotations

import re

from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.scenario import GuestSpec, HostSpec, MigrationSpec, Scenario, guest_uuid


def _stalled_us(fleet: Fleet, host: str) -> int:
    found = re.search(r"some .*total=(\d+)", fleet.tree(host).read("proc/pressure/memory"))
    assert found is not None
    return int(found[1])


def test_what_a_migration_brings_presses_on_the_target_before_it_is_over() -> None:
    hosts = [
        HostSpec(name="source", cpus=4, memory_mib=16384, link_mib_s=100.0),
        HostSpec(name="target", cpus=4, memory_mib=16384, overhead_mib=14800.0, link_mib_s=100.0),
    ]
    guest = GuestSpec(name="web", host="source", vcpus=1, memory_mib=2048, memory_used_mib=1800.0)
    fleet = Fleet(Scenario(name="pressed", hosts=hosts, guests=[guest], migration=MigrationSpec()))
    fleet.advance(30.0)
    before_us = _stalled_us(fleet, "target")
    fleet.hypervisor("source").migrate(guest_uuid("web"), fleet.migration_uri("target"))
    grown = []
    while fleet.guest_host(guest_uuid("web")) == "source":
        fleet.advance(2.0)
        grown.append(_stalled_us(fleet, "target") - before_us)
    assert len(grown) > 6, "it takes a while"
    assert 0 < grown[-4] < grown[-3] < grown[-2], grown
