"""What a restart and a reload keep, what they drop, and what is refused."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.rules_signals.reference import (
    CLEARING,
    FIRING,
    INACTIVE,
    PENDING,
    RULES,
    START_NS,
    Change,
    changes,
    host,
    ruleset,
    vm,
)
from virtpilot.clock import seconds
from virtpilot.errors import StateError
from virtpilot.model import Kind, Sample
from virtpilot.rules.signals.evaluator import Evaluator

WAITS = "virtpilot: 1\nrules:\n  - {name: waits, on: vm, when: cpu_steal_ratio > 50%, for: 30s, clear_for: 20s}\n"
BUSY = "  - {name: busy, on: host, when: cpu_usage_ratio > 50%}\n"


def at(time_s: float) -> int:
    return START_NS + seconds(time_s)


def restarted(evaluator: Evaluator, rules: str = WAITS) -> Evaluator:
    fresh = Evaluator(ruleset(rules))
    fresh.restore(json.loads(json.dumps(evaluator.snapshot())))
    return fresh


def told(evaluator: Evaluator, *levels: float, start: float) -> list[Change]:
    return [
        change
        for number, level in enumerate(levels)
        for change in changes(evaluator.feed([vm("g", start + 10 * number, level)], "m"))
    ]


def test_a_restart_in_the_middle_of_for_loses_none_of_it() -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, 0.9, start=0)
    assert told(restarted(evaluator), 0.9, 0.9, start=20) == [("waits", "g", PENDING, FIRING, at(30))]


def test_a_restart_in_the_middle_of_clear_for_loses_none_of_it() -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, start=0)
    assert told(restarted(evaluator), 0.1, start=60) == [("waits", "g", CLEARING, INACTIVE, at(60))]


def test_samples_that_were_taken_before_a_restart_are_late_after_it() -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, 0.9, 0.9, 0.9, start=0)
    again = restarted(evaluator)
    assert told(again, 0.1, 0.1, 0.1, 0.1, start=0) == []
    assert again.late == 4


def test_a_restart_keeps_guests_hosts_and_knobs() -> None:
    evaluator = Evaluator(ruleset(RULES))
    evaluator.feed([host("h1", 0, 0.7), vm("g", 1, 0.3, tier="gold")], "m")
    again = restarted(evaluator, RULES)
    assert again.latest(Kind.VM) == evaluator.latest(Kind.VM)
    assert again.latest(Kind.HOST) == evaluator.latest(Kind.HOST)
    row = again.row(Kind.VM, "g")
    assert row is not None
    assert row.values["host.cpu_usage_ratio"] == 0.7
    assert again.snapshot() == evaluator.snapshot()


def test_a_reload_keeps_unchanged_rules_and_ends_those_that_are_no_more() -> None:
    evaluator = Evaluator(ruleset(WAITS + BUSY))
    told(evaluator, 0.9, 0.9, 0.9, start=0)
    evaluator.feed([host("h1", 21, 0.9)], "host-message")
    reloaded = restarted(evaluator, WAITS + BUSY.replace("busy", "hot"))
    (over,) = reloaded.tick(at(25))
    assert changes([over]) == [("busy", "h1", FIRING, INACTIVE, at(21))]
    assert (over.cause, over.about) == ("host-message", "The rule has been changed or removed.")
    assert told(reloaded, 0.9, start=30) == [("waits", "g", PENDING, FIRING, at(30))]
    assert reloaded.tick(at(31)) == []


def test_a_rule_whose_condition_changed_starts_afresh() -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, 0.9, 0.9, 0.9, start=0)
    changed = restarted(evaluator, WAITS.replace("50%", "60%"))
    assert told(changed, 0.9, start=40) == [
        ("waits", "g", FIRING, INACTIVE, at(30)),
        ("waits", "g", INACTIVE, PENDING, at(40)),
    ]


@pytest.mark.parametrize(
    "change",
    [
        ("for: 30s", "for: 20s"),
        ("clear_for: 20s", "clear: cpu_steal_ratio < 1%"),
        ("on: vm", 'on: vm, where: tags.a == "b"'),
        ("on: vm", "on: vm, no_data: fire"),
    ],
)
def test_whatever_changes_a_signal_counts_as_a_change(change: tuple[str, str]) -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, start=0)
    assert len(restarted(evaluator, WAITS.replace(*change)).tick(at(1))) == 1


@pytest.mark.parametrize(
    "change",
    [
        ("on: vm", "on: vm, about: other words"),
        ("on: vm", "on: vm, severity: critical"),
        ("on: vm", "on: vm, priority: 3"),
        ("on: vm", "on: vm, mode: act"),
    ],
)
def test_what_does_not_change_a_signal_leaves_it_alone(change: tuple[str, str]) -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, 0.9, 0.9, start=0)
    again = restarted(evaluator, WAITS.replace(*change))
    assert told(again, 0.9, start=30) == [("waits", "g", PENDING, FIRING, at(30))]


def _set(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for part in path[:-1]:
            place = place[part]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


def _column(*numbers: np.generic) -> str:
    return base64.b64encode(b"".join(number.tobytes() for number in numbers)).decode()


DAMAGE = {
    "another version": _set("version", value=1),
    "no version": _set("version", value=KeyError),
    "no tables": _set("tables", value=KeyError),
    "tables of another kind": _set("tables", "pod", value={}),
    "no subjects": _set("tables", "vm", 0, "subjects", value=KeyError),
    "a row without subject": _set("tables", "vm", 0, "subjects", value=[]),
    "a row without cause": _set("tables", "vm", 0, "causes", value=[]),
    "a subject of another kind": _set("tables", "vm", 0, "subjects", 0, "kind", value="host"),
    "times that are a text": _set("tables", "vm", 0, "time", value="now"),
    "a time before all times": _set("tables", "vm", 0, "time", value=_column(np.int64(-1))),
    "more times than subjects": _set("tables", "vm", 0, "time", value=_column(np.int64(1), np.int64(2))),
    "an interval that is none": _set("tables", "vm", 0, "interval", value=_column(np.float64("nan"))),
    "values of another length": _set("tables", "vm", 0, "values", "cpu_steal_ratio", value=""),
    "an unknown state": _set("rules", 0, "states", 0, 1, value="burning"),
    "a state too short": _set("rules", 0, "states", 0, value=["g", "firing"]),
    "rules that are no list": _set("rules", value={}),
    "an unknown key": _set("more", value=1),
    "knobs of another shape": _set("knobs", value=[["g", "cpu_shares", "many", 1]]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(name: str) -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.9, start=0)
    document = json.loads(json.dumps(evaluator.snapshot()))
    DAMAGE[name](document)
    fresh = Evaluator(ruleset(WAITS))
    before = copy.deepcopy(fresh.snapshot())
    with pytest.raises(StateError, match="signals: "):
        fresh.restore(document)
    assert fresh.snapshot() == before


@pytest.mark.parametrize("document", [None, [], "state", 3])
def test_what_is_no_snapshot_at_all_is_refused(document: Any) -> None:
    with pytest.raises(StateError, match="version None is not known"):
        Evaluator(ruleset(WAITS)).restore(document)


def test_a_field_that_only_the_new_rules_read_is_unknown_until_it_is_measured() -> None:
    evaluator = Evaluator(ruleset(WAITS))
    told(evaluator, 0.1, start=0)
    reloaded = restarted(evaluator, WAITS + "  - {name: used, on: vm, when: cpu_usage_ratio < 50%}\n")
    assert reloaded.feed([vm("g", 10, 0.1)], "m") == []
    assert changes(reloaded.feed([vm("g", 20, 0.1, 0.2)], "m")) == [("used", "g", INACTIVE, FIRING, at(20))]


def test_transitions_after_the_last_save_are_taken_up_too() -> None:
    """The last save knew one guest, pending; since then it fires, another has come, and the host is busy."""
    evaluator = Evaluator(ruleset(WAITS + BUSY))
    told(evaluator, 0.9, start=0)
    base = json.loads(json.dumps(evaluator.snapshot()))
    made = [
        signal
        for sample in (vm("g", 10, 0.9), vm("g", 20, 0.9), vm("g", 30, 0.9), vm("n", 25, 0.9), host("h1", 26, 0.9))
        for signal in evaluator.feed([sample], "m")
    ]
    turns = {f"{one.rule} {one.subject.id}": msgspec.to_builtins(evaluator.turn(one)) for one in made}
    fresh = Evaluator(ruleset(WAITS + BUSY))
    fresh.restore(base)
    fresh.resume(json.loads(json.dumps(turns)))
    assert fresh.firing_counts() == evaluator.firing_counts() == {"waits": 1, "busy": 1}
    assert fresh.feed([vm("g", 30, 0.1)], "m") == [], "taken before the restart"
    assert told(fresh, 0.1, 0.1, 0.1, start=40) == [
        ("waits", "g", FIRING, CLEARING, at(40)),
        ("waits", "g", CLEARING, INACTIVE, at(60)),
    ]
    found = [change for number in (1, 2, 3) for change in changes(fresh.feed([vm("n", 25 + 10 * number, 0.9)], "m"))]
    assert found == [("waits", "n", PENDING, FIRING, at(55))]


def test_a_signal_that_ended_after_the_last_save_does_not_come_back() -> None:
    evaluator = Evaluator(ruleset(BUSY.replace("  - ", "virtpilot: 1\nrules:\n  - ")))
    evaluator.feed([host("h1", 0, 0.9)], "m")
    base = evaluator.snapshot()
    (over,) = evaluator.feed([host("h1", 10, 0.1)], "m")
    fresh = Evaluator(ruleset(BUSY.replace("  - ", "virtpilot: 1\nrules:\n  - ")))
    fresh.restore(base)
    fresh.resume({"busy h1": msgspec.to_builtins(evaluator.turn(over))})
    assert fresh.firing_counts() == {"busy": 0}


def test_damaged_transitions_are_refused() -> None:
    with pytest.raises(StateError, match="signals: "):
        Evaluator(ruleset(WAITS)).resume({"waits g": {"digest": ""}})


@pytest.mark.parametrize("guests", [0, 1, 2_500])
def test_the_pieces_of_the_state_are_the_state(guests: int) -> None:
    evaluator = Evaluator(ruleset(WAITS))
    for number in range(guests):
        knob = Sample("knob", {"vm": f"g{number}", "knob": "cpu_shares"}, {"value_count": 1024}, START_NS)
        evaluator.feed([vm(f"g{number}", 0, 0.9), knob], "m")
    state = evaluator.snapshot()
    del state["windows"]
    pieces = list(evaluator.fragments())
    assert sum(b'"subjects":[{' in piece for piece in pieces) == -(-guests // 1_000), "a thousand in a piece"
    assert json.loads(b"".join(pieces)) == json.loads(json.dumps(state))


def test_the_pieces_are_the_state_again_after_guests_came_went_moved_and_were_named_anew() -> None:
    evaluator = Evaluator(ruleset(WAITS))

    def assert_the_same() -> list[bytes]:
        state, pieces = evaluator.snapshot(), list(evaluator.fragments())
        del state["windows"]
        assert json.loads(b"".join(pieces)) == json.loads(json.dumps(state))
        return pieces

    evaluator.feed([vm(f"g{number}", 0, 0.9) for number in range(2_500)], "m")
    assert assert_the_same() == assert_the_same()
    evaluator.feed([vm("g7", 10, 0.1, on="h2"), vm("g1700", 10, 0.1, tier="web"), vm("g8", 10, 0.1)], "m")
    assert_the_same()
    for guest in ("g3", "g2499"):
        evaluator._world.remove(Kind.VM, guest)
    assert_the_same()
    evaluator.feed([vm("new", 10, 0.1), vm("g3", 10, 0.1)], "m")
    assert_the_same()
    for number in range(900, 2_499):
        evaluator._world.remove(Kind.VM, f"g{number}")
    assert_the_same()
    evaluator.feed([vm(f"g{number}", 20, 0.1) for number in range(900, 2_000)], "m")
    assert_the_same()


def test_who_comes_and_goes_while_the_state_is_made_is_in_it_once_at_most() -> None:
    evaluator = Evaluator(ruleset(WAITS))
    evaluator.feed([vm(f"g{number}", 0, 0.9) for number in range(2_500)], "m")
    parts = evaluator._tables[Kind.VM].dump()
    first = next(parts)
    for guest in ("g1", "g2400"):
        evaluator._world.remove(Kind.VM, guest)
    evaluator.feed([vm("g1", 10, 0.1), vm("new", 10, 0.1), vm("g2400", 10, 0.1)], "m")
    ids = [subject.id for part in (first, *parts) for subject in part.subjects]
    assert len(ids) == len(set(ids)) == 2_499
