"""What libvirt told of a guest in two rounds, and the samples that a person worked out from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import TextTree
from virtpilot.clock import seconds
from virtpilot.collectors.collector import HostCollector
from virtpilot.fields import FIELDS
from virtpilot.host_fields import GROUP_FIELDS
from virtpilot.hypervisor import GuestDetails, GuestStats
from virtpilot.model import Sample

CASES: Final = sorted(Path(__file__).parent.glob("guests/*.json"))
START_NS: Final = seconds(1_800_000_000)
OWN: Final = {"cluster": "c", "host": "h", "vm": "u-1", "name": "web-1", "tier": "web"}


def played(case: dict[str, Any]) -> list[Sample]:
    """Return the guest's samples of the second round."""
    hypervisor = ToldGuests()
    collector = HostCollector(
        hypervisor,
        TextTree(),
        {"cluster": "c", "host": "h"},
        frozenset({0}),
        monotonic_ns=lambda: 0,
        leased=lambda guest, knob: guest == "u-1" and knob in case.get("leased", ()),
    )
    for number, part in enumerate(("first", "second")):
        told = GuestStats(
            "u-1",
            "web-1",
            case[part],
            case.get("knobs", {}),
            {"tier": "web"},
            case["runs"][number],
            case.get("ages", [0, 0])[number],
            msgspec.convert(case.get("details", {}), GuestDetails),
        )
        hypervisor.told = [told]
        samples = collector.collect(START_NS + number * seconds(case["seconds"]))
    return samples[1:]


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_samples_are_those_worked_out(file: Path) -> None:
    case = json.loads(file.read_text())
    found = played(case)
    expected = case["expected"]
    assert [sample.measurement for sample in found] == [sample["measurement"] for sample in expected]
    for sample, right in zip(found, expected, strict=True):
        assert sample.tags == OWN | right.get("tags", {})
        assert sample.fields == pytest.approx(right["fields"]), sample.measurement
        assert sample.time_ns == START_NS + seconds(case["seconds"])


def test_every_field_told_is_declared_and_every_declared_one_is_told() -> None:
    told = {
        (sample.measurement, field)
        for file in CASES
        for sample in played(json.loads(file.read_text()))
        for field in sample.fields
    }
    # hosts and control groups have cases of their own, jobs are told by events, intervals by the agent
    elsewhere = {("vm", field.name) for field in GROUP_FIELDS} | {("vm", "sample_interval_seconds")}
    assert told == {key for key in FIELDS if not key[0].startswith(("host", "vm_job"))} - elsewhere
