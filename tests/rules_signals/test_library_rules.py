"""The rules that virtpilot ships: each fires where it should, and keeps quiet where it should not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from virtpilot.clock import SECOND
from virtpilot.model import Mode, Sample, SignalState
from virtpilot.rules import language
from virtpilot.rules.language import check, load
from virtpilot.rules.signals.evaluator import Evaluator

START_NS = 1_700_000_000 * SECOND
LIBRARY = Path(language.__file__).parents[1] / "library"
RULES = {rule.name: rule for rule in load([LIBRARY]).rules}
MIB = float(2**20)

Fields = Mapping[str, float]
# What a host and a guest on it measure: (guest, host, the guest's tier).
Scene = tuple[Fields, Fields, str]

FIRES: dict[str, list[Scene]] = {
    "vm-cpu-starved": [({"cpu_steal_ratio": 0.3}, {"cpu_usage_ratio": 0.95}, "")],
    "host-cpu-saturated": [({}, {"cpu_usage_ratio": 0.99}, "")],
    "host-io-pressure": [({}, {"psi_io_full_ratio": 0.4}, "")],
    "vm-memory-low": [({"memory_usable_bytes": 20 * MIB, "memory_used_ratio": 0.95}, {}, "")],
    "host-memory-low": [
        ({}, {"memory_used_ratio": 0.97, "psi_memory_full_ratio": 0.0}, ""),
        ({}, {"memory_used_ratio": 0.97}, ""),
        ({}, {"memory_used_ratio": 0.5, "psi_memory_full_ratio": 0.2}, ""),
    ],
}
QUIET: dict[str, list[Scene]] = {
    "vm-cpu-starved": [
        ({"cpu_steal_ratio": 0.05}, {"cpu_usage_ratio": 0.95}, ""),
        ({"cpu_steal_ratio": 0.3}, {"cpu_usage_ratio": 0.5}, ""),
        ({"cpu_steal_ratio": 0.3}, {"cpu_usage_ratio": 0.95}, "batch"),
        ({"cpu_steal_ratio": 0.3}, {}, ""),
        ({}, {"cpu_usage_ratio": 0.95}, ""),
    ],
    "host-cpu-saturated": [({}, {"cpu_usage_ratio": 0.9}, "")],
    "host-io-pressure": [({}, {"psi_io_full_ratio": 0.2}, ""), ({}, {"psi_io_some_ratio": 0.9}, "")],
    "vm-memory-low": [
        ({"memory_usable_bytes": 20 * MIB, "memory_used_ratio": 0.8}, {}, ""),
        ({"memory_usable_bytes": 900 * MIB, "memory_used_ratio": 0.95}, {}, ""),
        ({"memory_used_ratio": 0.95}, {}, ""),
    ],
    "host-memory-low": [({}, {"memory_used_ratio": 0.9, "psi_memory_full_ratio": 0.05}, ""), ({}, {}, "")],
}
CALM: Scene = (
    {"cpu_steal_ratio": 0.0, "memory_usable_bytes": 900 * MIB, "memory_used_ratio": 0.3},
    {"cpu_usage_ratio": 0.2, "psi_io_full_ratio": 0.0, "memory_used_ratio": 0.4, "psi_memory_full_ratio": 0.0},
    "",
)


def minutes(evaluator: Evaluator, scene: Scene, start: int, count: int) -> list[tuple[str, SignalState]]:
    """Every ten seconds a sample of the host and of the guest."""
    guest, host, tier = scene
    told = []
    for step in range(start * 6, (start + count) * 6):
        time_ns = START_NS + step * 10 * SECOND
        samples = [
            Sample("host", {"host": "h1"}, dict(host), time_ns),
            Sample("vm", {"host": "h1", "vm": "g"} | ({"tier": tier} if tier else {}), dict(guest), time_ns),
        ]
        told += [(one.rule, one.state) for one in evaluator.feed(samples, "m")]
    return told


def test_they_load_clean_and_only_observe() -> None:
    assert check([LIBRARY]) == []
    assert {rule.mode for rule in RULES.values()} == {Mode.OBSERVE}
    assert all(rule.about for rule in RULES.values())


def test_each_has_its_scenes() -> None:
    assert set(FIRES) == set(QUIET) == set(RULES)


@pytest.mark.parametrize(("name", "scene"), [(name, scene) for name, scenes in FIRES.items() for scene in scenes])
def test_it_fires_and_clears_again(name: str, scene: Scene) -> None:
    evaluator = Evaluator(load([LIBRARY]))
    told = minutes(evaluator, CALM, 0, 1) + minutes(evaluator, scene, 1, 6) + minutes(evaluator, CALM, 7, 4)
    assert [state for rule, state in told if rule == name] == [
        SignalState.PENDING,
        SignalState.FIRING,
        SignalState.CLEARING,
        SignalState.INACTIVE,
    ]


@pytest.mark.parametrize(("name", "scene"), [(name, scene) for name, scenes in QUIET.items() for scene in scenes])
def test_it_keeps_quiet(name: str, scene: Scene) -> None:
    evaluator = Evaluator(load([LIBRARY]))
    assert name not in {rule for rule, _state in minutes(evaluator, scene, 0, 8)}


@pytest.mark.parametrize("name", RULES)
def test_a_short_peak_is_no_reason(name: str) -> None:
    """`for` of each is more than one sample."""
    evaluator = Evaluator(load([LIBRARY]))
    guest, host, _tier = FIRES[name][0]
    peak = [
        Sample("host", {"host": "h1"}, dict(host), START_NS + 59 * SECOND + SECOND // 2),
        Sample("vm", {"host": "h1", "vm": "g"}, dict(guest), START_NS + 59 * SECOND + SECOND // 2),
    ]
    told = minutes(evaluator, CALM, 0, 1)
    told += [(one.rule, one.state) for one in evaluator.feed(peak, "m")]
    told += minutes(evaluator, CALM, 1, 2)
    assert [state for rule, state in told if rule == name] == [SignalState.PENDING, SignalState.INACTIVE]
