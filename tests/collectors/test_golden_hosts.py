"""Recorded trees of /proc and /sys at two moments, and the fields that a person worked out from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import MovingTree
from virtpilot.clock import seconds
from virtpilot.collectors.collector import HostCollector
from virtpilot.errors import HypervisorUnavailable
from virtpilot.fields import FIELDS

CASES: Final = sorted(path.parent for path in Path(__file__).parent.glob("hosts/*/case.json"))
# What is not in /proc: test_host_collector.py has it.
OF_THE_AGENT: Final = {
    "guests_running_count",
    "guests_defined_count",
    "guests_skipped_total",
    "jobs_running_count",
    "guests_fast_count",
    "guests_calm_count",
    "vcpus_allocated_count",
    "memory_allocated_bytes",
    "cpu_overcommit_ratio",
    "memory_overcommit_ratio",
    "source_failures_total",
    "tick_budget_seconds",
    "tick_duration_seconds",
    "tick_overruns_total",
    "tick_skips_total",
    "spool_dropped_total",
    "spool_messages_count",
    "spool_size_bytes",
    "spool_unspooled_total",
    "spool_used_ratio",
}
START_NS: Final = seconds(1_800_000_000)


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_host_fields_are_those_worked_out(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    tree = MovingTree(folder / "first")
    collector = HostCollector(
        ToldGuests(HypervisorUnavailable("down")),
        tree,
        {"cluster": "c", "host": "h"},
        frozenset(case["cpus"]),
        monotonic_ns=lambda: 0,
    )
    collector.collect(START_NS)
    tree.root = folder / "second"
    sample, *devices = collector.collect(START_NS + seconds(case["seconds"]))
    assert (sample.measurement, sample.tags) == ("host", {"cluster": "c", "host": "h"})
    fields = {name: value for name, value in sample.fields.items() if name not in OF_THE_AGENT}
    assert fields == pytest.approx(case["expected"])
    told = case.get("devices", [])
    assert [(device.measurement, device.tags) for device in devices] == [
        (right["measurement"], {"cluster": "c", "host": "h"} | right["tags"]) for right in told
    ]
    for device, right in zip(devices, told, strict=True):
        assert device.fields == pytest.approx(right["fields"]), right


def test_every_field_of_the_host_is_in_some_case_and_every_one_in_a_case_is_declared() -> None:
    cases = [json.loads((folder / "case.json").read_text()) for folder in CASES]
    worked_out = {("host", name) for case in cases for name in case["expected"]}
    worked_out |= {
        (told["measurement"], name) for case in cases for told in case.get("devices", []) for name in told["fields"]
    }
    declared = {key for key in FIELDS if key[0].startswith("host")}
    assert worked_out | {("host", name) for name in OF_THE_AGENT} == declared
