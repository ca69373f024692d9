"""Who gets a knob, and why the others do not."""

from __future__ import annotations

import pytest

from tests.rules_decisions.world import ALL
from virtpilot.model import Kind, Mode, Subject
from virtpilot.rules.decisions.arbiter import Lease, arbitrate
from virtpilot.rules.decisions.want import Want
from virtpilot.rules.language.records import Cooldown

SET, MOVE = ALL.rules[0].remedies
ORDER = {"first": 0, "second": 1, "third": 2}


def want(rule: str, priority: int = 50, knob: str = "cpu_shares", guest: str = "g1", **more: object) -> Want:
    return Want(
        cause="sg",
        rule=rule,
        subject=Subject(Kind.VM, guest),
        rung=0,
        attempt=1,
        remedy=MOVE if knob == "placement" else SET,
        priority=priority,
        knob=knob,
        severity="warning",
        mode=more.get("mode", Mode.ACT),  # type: ignore[arg-type]
        cooldown=Cooldown(),
        blocked=bool(more.get("blocked")),
    )


def lease(rule: str, priority: int) -> Lease:
    return Lease(rule=rule, priority=priority, command="cm", until_ns=10)


CASES = {
    "the higher priority wins": ([want("first", 40), want("second", 60)], {}, {}, ["second"]),
    "a tie goes to the smaller change": (
        [want("first"), want("second")],
        {},
        {"first": 1.0, "second": 0.5},
        ["second"],
    ),
    "a tie goes to the set before the move": ([want("first", knob="placement"), want("second")], {}, {}, ["second"]),
    "an equal tie goes to the earlier rule": ([want("third"), want("second"), want("first")], {}, {}, ["first"]),
    "guests do not disturb each other": (
        [want("first"), want("second", guest="g2")],
        {},
        {},
        ["first", "second"],
    ),
    "one operation a guest at a time": ([want("first", 60, "placement"), want("second", 50)], {}, {}, ["first"]),
    "a lease keeps its knob against a lower priority": (
        [want("first", 60)],
        {("g1", "cpu_shares"): lease("second", 70)},
        {},
        [],
    ),
    "a lease keeps its knob against an equal priority": (
        [want("first", 70)],
        {("g1", "cpu_shares"): lease("second", 70)},
        {},
        [],
    ),
    "a lease yields to a higher priority": (
        [want("first", 80)],
        {("g1", "cpu_shares"): lease("second", 70)},
        {},
        ["first"],
    ),
    "a lease does not stand in its owner's way": (
        [want("second", 10)],
        {("g1", "cpu_shares"): lease("second", 70)},
        {},
        ["second"],
    ),
    "a lease on one knob leaves the placement free": (
        [want("first", 10, "placement")],
        {("g1", "cpu_shares"): lease("second", 70)},
        {},
        ["first"],
    ),
    "a rule that only observes keeps nobody off": (
        [want("first", 90, mode=Mode.OBSERVE), want("second", 10)],
        {},
        {},
        ["first", "second"],
    ),
    "a rule that a guard stopped leaves the guest's other knobs": (
        [want("first", 90, "placement", blocked=True), want("second", 10)],
        {},
        {},
        ["first", "second"],
    ),
    "a rule that a guard stopped keeps its own knob": (
        [want("first", 90, blocked=True), want("second", 10)],
        {},
        {},
        ["first"],
    ),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_the_winners_are(case: str) -> None:
    wants, leases, changes, winners = CASES[case]
    for order in (wants, wants[::-1]):
        won, lost = arbitrate(order, leases, lambda one: changes.get(one.rule, 1.0), ORDER)
        assert sorted(one.rule for one in won) == sorted(winners)
        assert sorted(one.rule for one, _ in lost) == sorted({one.rule for one in wants} - set(winners))


def test_the_loser_hears_who_has_what() -> None:
    _, lost = arbitrate([want("first", 40), want("second", 60)], {}, lambda _: 0.0, ORDER)
    assert lost[0][1] == "second (priority 60) takes cpu_shares: it has the higher priority"
    _, lost = arbitrate([want("first", 40)], {("g1", "cpu_shares"): lease("second", 60)}, lambda _: 0.0, ORDER)
    assert lost[0][1] == "second (priority 60) holds cpu_shares"
