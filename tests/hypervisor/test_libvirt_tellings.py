"""What libvirt's callbacks say, in our words; libvirt's own constants hold the lists, any argument is borne."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.services import lack
from tests.thoroughness import examples
from virtpilot.events import MEANINGS, EventKind
from virtpilot.libvirt_tellings import TELLINGS, Told, lifecycle

EXAMPLES: list[tuple[str, tuple[Any, ...], Told | None]] = [
    ("LIFECYCLE", (5, 2), Told(EventKind.STOPPED, "crashed")),
    ("LIFECYCLE", (3, 1), Told(EventKind.SUSPENDED, "migrated")),
    ("LIFECYCLE", (2, 99), Told(EventKind.STARTED, "99")),
    ("LIFECYCLE", (99, 0), None),
    ("REBOOT", (), Told(EventKind.REBOOTED)),
    ("WATCHDOG", (2,), Told(EventKind.WATCHDOG, "reset")),
    ("IO_ERROR_REASON", ("/disk", "disk0", 1, "enospc"), Told(EventKind.IO_ERROR, "disk0 /disk enospc pause")),
    ("IO_ERROR_REASON", (None, None, 2, None), Told(EventKind.IO_ERROR, "report")),
    ("CONTROL_ERROR", (), Told(EventKind.CONTROL_ERROR)),
    ("BALLOON_CHANGE", (1024,), Told(EventKind.BALLOON_CHANGED, "", {"memory_balloon_bytes": 1048576})),
    ("DEVICE_ADDED", ("net1",), Told(EventKind.DEVICE_ADDED, "net1")),
    ("DEVICE_REMOVED", ("net1",), Told(EventKind.DEVICE_REMOVED, "net1")),
    ("DEVICE_REMOVAL_FAILED", ("net1",), Told(EventKind.DEVICE_REMOVAL_FAILED, "net1")),
    ("TUNABLE", ({"cputune.cpu_shares": 500},), Told(EventKind.KNOB_CHANGED, "cputune", {"cpu_shares": 500})),
    ("TUNABLE", ({"cputune.vcpupin1": "0-1,3"},), Told(EventKind.KNOB_CHANGED, "cputune", {"vcpupin": 0b1011})),
    ("TUNABLE", ({"cputune.emulatorpin": "no list"},), Told(EventKind.KNOB_CHANGED, "cputune")),
    ("TUNABLE", ({"cputune.vcpu_quota": -1},), Told(EventKind.KNOB_CHANGED, "cputune", {"vcpu_quota": 0})),
    (
        "TUNABLE",
        ({"blkdeviotune.disk": "vda", "blkdeviotune.total_iops_sec": 50},),
        Told(EventKind.KNOB_CHANGED, "blkdeviotune vda", {"vda.total_iops_sec": 50}),
    ),
    ("AGENT_LIFECYCLE", (1, 2), Told(EventKind.GUEST_AGENT, "connected: channel event")),
    ("MIGRATION_ITERATION", (3,), Told(EventKind.MIGRATION_ITERATION, "", {"iterations_count": 3})),
    ("METADATA_CHANGE", (2, "urn:x"), Told(EventKind.METADATA_CHANGED, "element urn:x")),
    ("METADATA_CHANGE", (1, None), Told(EventKind.METADATA_CHANGED, "title")),
    (
        "BLOCK_THRESHOLD",
        ("vda", None, 4096, 512),
        Told(EventKind.BLOCK_THRESHOLD, "vda", {"threshold_bytes": 4096, "excess_bytes": 512}),
    ),
    ("MEMORY_FAILURE", (1, 2, 0), Told(EventKind.MEMORY_FAILURE, "guest fatal")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words", "told"), EXAMPLES)
def test_each_event_in_our_words(name: str, words: tuple[Any, ...], told: Told | None) -> None:
    assert TELLINGS[name](*words) == told


def test_every_event_has_an_example_and_every_kind_a_meaning() -> None:
    assert {name for name, _, _ in EXAMPLES} | {"JOB_COMPLETED"} == set(TELLINGS)
    assert set(MEANINGS) == set(EventKind)


def test_the_lists_are_those_of_libvirt() -> None:
    """In the binding's own constants: VIR_DOMAIN_EVENT_STOPPED_CRASHED is detail 2 of event 5."""
    try:
        import libvirt
    except ImportError:
        lack("libvirt-python is not installed")
    constants = vars(libvirt)
    assert all(f"VIR_DOMAIN_EVENT_ID_{name}" in constants for name in TELLINGS)
    checked = 0
    for kind in (
        "DEFINED",
        "UNDEFINED",
        "STARTED",
        "SUSPENDED",
        "RESUMED",
        "STOPPED",
        "SHUTDOWN",
        "PMSUSPENDED",
        "CRASHED",
    ):
        event, prefix = constants[f"VIR_DOMAIN_EVENT_{kind}"], f"VIR_DOMAIN_EVENT_{kind}_"
        details = {
            name.removeprefix(prefix).lower(): number for name, number in constants.items() if name.startswith(prefix)
        }
        for detail, number in details.items():
            assert lifecycle(event, number) == Told(EventKind(kind.lower()), detail)
            checked += 1
    assert checked > 35


junk = st.one_of(
    st.integers(), st.floats(), st.none(), st.text(max_size=300), st.booleans(),
    st.dictionaries(st.text(max_size=20), st.one_of(st.integers(), st.floats(), st.text(max_size=9)), max_size=3),
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.sampled_from(EXAMPLES), st.lists(junk, min_size=4, max_size=4))
def test_whatever_comes_is_told_in_one_line_and_finite_numbers(example: Any, words: list[Any]) -> None:
    name, given_words, _told = example
    arguments = words[: len(given_words)]
    if name == "TUNABLE" and not isinstance(arguments[0], dict):
        arguments = [{}]
    told = TELLINGS[name](*arguments)
    if told is not None:
        assert told.detail.isprintable()
        assert len(told.detail) < 1000
        assert all(math.isfinite(number) for number in told.numbers.values())
