"""Pinning: a guest is pinned to CPUs and NUMA nodes that are there."""

from __future__ import annotations

from virtpilot.actuators.knobs.change import Change
from virtpilot.errors import CommandRefused
from virtpilot.knobs import list_of


def check(change: Change) -> None:
    """Refuse CPUs or nodes that this host does not have; raises CommandRefused and HypervisorError."""
    facts = change.hypervisor.facts()
    there = facts.node_set if change.knob.name == "numa_nodeset" else facts.cpu_set
    if change.value & ~there:
        raise CommandRefused(
            "value", f"{change.knob.name} {list_of(change.value)}: this host has {list_of(there)} only"
        )
