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
from virtpilot.fields import names

CASES: Final = sorted(path.parent for path in Path(__file__).parent.glob("hosts/*/case.json"))
# What is not in /proc: test_host_collector.py has it.
OF_THE_AGENT: Final = {
    "guests_running_count",
    "guests_defined_count",
    "guests_skipped_total",
    "vcpus_allocated_count",
    "memory_allocated_bytes",
    "source_failures_total",
    "tick_budget_seconds",
    "tick_duration_seconds",
    "tick_overruns_total",
    "tick_skips_total",
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
    (sample,) = collector.collect(START_NS + seconds(case["seconds"]))
    assert (sample.measurement, sample.tags) == ("host", {"cluster": "c", "host": "h"})
    fields = {name: value for name, value in sample.fields.items() if name not in OF_THE_AGENT}
    assert fields == pytest.approx(case["expected"])


def test_every_field_of_the_host_is_in_some_case_and_every_one_in_a_case_is_declared() -> None:
    worked_out = {name for folder in CASES for name in json.loads((folder / "case.json").read_text())["expected"]}
    assert worked_out | OF_THE_AGENT == set(names("host"))
