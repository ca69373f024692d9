"""What libvirt tells of a knob that virtpilot has set, in its own words for no limit, is nobody else's doing."""

from __future__ import annotations

import pytest

from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestEvent
from virtpilot.model import Outcome, Result
from virtpilot.pipeline.event_desk import Own

GUEST = "5f0a1b5e-0000-4000-8000-000000000001"


class NoMoves:
    """No guest is under way."""

    def moving(self, _guest: str) -> str:
        return ""

    came_by = moving


def outcome(knob: str, value: float) -> Outcome:
    return Outcome(
        id="oc-1", cause="cm-1", command="cm-1", host="h", guest=GUEST, result=Result.DONE, at_ns=0,
        action=f"set {knob}", after={knob: value},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("knob", "value", "kind", "numbers", "detail", "ours"),
    [
        ("vcpu_quota", 50_000, EventKind.KNOB_CHANGED, {"vcpu_quota": 50_000}, "cputune", True),
        ("vcpu_quota", 50_000, EventKind.KNOB_CHANGED, {"vcpu_quota": 40_000}, "cputune", False),
        ("vcpupin", 0, EventKind.KNOB_CHANGED, {"vcpupin": 0b11}, "cputune", True),
        ("vcpupin", 1, EventKind.KNOB_CHANGED, {"vcpupin": 0b11}, "cputune", False),
        ("memory_hard_limit", 0, EventKind.KNOB_CHANGED, {}, "seen no-memory_hard_limit", True),
        ("memory_hard_limit", 0, EventKind.KNOB_CHANGED, {}, "seen no-memory_soft_limit", False),
        ("vda.total_iops_sec", 9, EventKind.KNOB_CHANGED,
         {"vda.total_iops_sec": 9, "vda.read_iops_sec": 0}, "blkdeviotune vda", True),
        ("memory_balloon", 2**30, EventKind.BALLOON_CHANGED, {"memory_balloon_bytes": 2**30 + 4096}, "", True),
        ("cpu_shares", 2**30, EventKind.BALLOON_CHANGED, {"memory_balloon_bytes": 2**30}, "", False),
    ],
)  # fmt: skip
def test_an_echo_is_known_as_such(
    knob: str, value: float, kind: EventKind, numbers: dict[str, float], detail: str, ours: bool
) -> None:
    own = Own(NoMoves())
    own.note([outcome(knob, value)], 0)
    event = GuestEvent(at_ns=1, kind=kind, guest=GUEST, detail=detail, numbers=numbers)
    assert own.command(event) == ("cm-1" if ours else "")
