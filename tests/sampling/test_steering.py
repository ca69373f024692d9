"""What a controller asks of the agents: whom it names, when it says so again, when it takes it back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from virtpilot.clock import SECOND, seconds
from virtpilot.model import Kind, Sample, Sampling
from virtpilot.pipeline import steering
from virtpilot.pipeline.steering import Steering, SteeringOptions
from virtpilot.rules.language.expression import condition
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.evaluator import Evaluator

T0 = 1_700_000_000 * SECOND
RULE = Rule(name="r", on=Kind.VM, when=condition("cpu_steal_ratio > 10%", Kind.VM), digest="d", for_ns=seconds(20))


class Desk:
    """An evaluator that is fed by hand each second, and what is asked of the hosts h1 and h2."""

    def __init__(self, **options: Any) -> None:
        self.evaluator = Evaluator(RuleSet((RULE,)))
        self.steering = Steering(SteeringOptions(**options))
        self.at_s = 0.0
        self.values = {"a": 0.0, "b": 0.0, "c": 0.0}
        self.hosts = {"a": "h1", "b": "h1", "c": "h2"}
        self.there: Collection[str] = {"h1", "h2"}
        self.measuring: set[str] = set()

    def run(self, for_s: float) -> list[Sampling]:
        found = []
        end = self.at_s + for_s
        while self.at_s < end:
            self.at_s += 1
            now_ns = T0 + seconds(self.at_s)
            samples = [
                Sample("vm", {"host": self.hosts[guest], "vm": guest}, {"cpu_steal_ratio": value}, now_ns)
                for guest, value in self.values.items()
            ]
            self.evaluator.feed(samples, "c")
            orders = self.steering.look(self.evaluator, (RULE,), self.measuring, self.there, now_ns)
            found += [order for portion in orders for order in portion]
        return found


def brief(orders: list[Sampling]) -> list[tuple[str, list[str], list[str]]]:
    return [(order.host, order.fast, order.calm) for order in orders]


def test_nothing_is_asked_for_while_nobody_is_near_or_calm() -> None:
    assert Desk().run(100) == []


def test_a_guest_near_its_threshold_is_asked_for_at_once_again_and_taken_back() -> None:
    desk = Desk()
    desk.run(12)
    desk.values["a"] = 0.09
    first, *more = desk.run(30)
    assert first == Sampling(
        host="h1", at_ns=first.at_ns, until_ns=first.at_ns + seconds(20), fast=["a"], fast_s=1.0, calm=[], calm_s=30.0
    )
    assert first.at_ns <= T0 + seconds(17)
    # Repeated before the agent forgets.
    assert {later.at_ns - earlier.at_ns for earlier, later in zip([first, *more], more, strict=False)} == {seconds(10)}
    desk.values["a"] = 0.0
    *held, last = desk.run(60)
    assert all(order.fast == ["a"] for order in held)
    assert (last.fast, last.calm, desk.steering.counts()) == ([], [], {"fast": 0, "calm": 0})
    assert seconds(30) <= last.at_ns - T0 - seconds(42) <= seconds(40)
    assert desk.run(60) == []


def test_a_signal_under_way_and_an_effect_that_is_measured_are_near_too() -> None:
    desk = Desk(margin_ratio=0.0)
    desk.values["a"] = 0.11
    assert brief(desk.run(6))[0] == ("h1", ["a"], [])  # pending
    desk.measuring = {"c"}
    assert brief(desk.run(6))[-1] == ("h2", ["c"], [])


def test_the_most_urgent_come_first_where_there_are_too_many() -> None:
    desk = Desk(fast_guests=1)
    desk.values |= {"a": 0.09, "b": 0.5}
    assert brief(desk.run(6)) == [("h1", ["b"], [])]


def test_who_was_never_near_for_long_is_calm_and_no_longer_so_at_once() -> None:
    desk = Desk(calm_after_s=60.0)
    desk.run(10)
    desk.values["c"] = 0.2
    assert ("h1", [], ["a", "b"]) in brief(desk.run(60))
    desk.values["a"] = 0.095
    found = brief(desk.run(6))
    assert ("h1", ["a"], ["b"]) in found
    assert all(not calm for host, _fast, calm in found if host == "h2")


def test_a_guest_that_moved_is_asked_for_where_it_is() -> None:
    desk = Desk()
    desk.values["a"] = 0.2
    desk.run(6)
    desk.hosts["a"] = "h2"
    assert set(map(str, brief(desk.run(6)))) == {"('h1', [], [])", "('h2', ['a'], [])"}


def test_hosts_without_an_agent_are_asked_for_nothing() -> None:
    """A name that comes with a sample can be anything; an agent's has been on a topic."""
    desk = Desk()
    desk.hosts["a"] = "+/#"
    desk.values["a"] = desk.values["c"] = 0.2
    assert {order.host for order in desk.run(12)} == {"h2"}


def test_the_same_is_asked_for_however_many_are_looked_at_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for at_once in (100, 2, 1):
        monkeypatch.setattr(steering, "_GUESTS_AT_ONCE", at_once)
        desk = Desk(calm_after_s=60.0)
        desk.measuring = {"b"}
        desk.values |= {"a": 0.09, "c": 0.3}
        found.append(desk.run(40))
        desk.values |= {"a": 0.0, "c": 0.0}
        found[-1] += desk.run(160)
    assert found[0] == found[1] == found[2]
    assert ("h1", ["b"], ["a"]) in brief(found[0])


def test_it_can_be_switched_off() -> None:
    desk = Desk(every_s=0.0)
    desk.values["a"] = 0.5
    assert desk.run(60) == []


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    desk = Desk()
    desk.values["a"] = 0.2
    desk.run(30)
    desk.at_s -= 3_000
    found = []
    for _ in range(30):
        desk.at_s += 1
        now_ns = T0 + seconds(desk.at_s)
        for orders in desk.steering.look(desk.evaluator, (RULE,), desk.measuring, desk.there, now_ns):
            found += orders
    assert len(found) >= 2
    assert all(order.fast == ["a"] and order.until_ns > order.at_ns for order in found)


def test_what_was_near_before_a_clock_was_set_back_is_not_near_for_ever() -> None:
    desk = Desk()
    desk.measuring = {"a"}
    desk.run(30)
    desk.at_s, desk.measuring = desk.at_s - 3_000, set()
    assert brief(desk.run(6)) == [("h1", [], [])]
    assert desk.steering.counts() == {"fast": 0, "calm": 0}


def test_a_guest_that_had_gone_is_near_only_where_it_is_near_again() -> None:
    desk = Desk(hold_s=1e6, calm_after_s=1e6)
    desk.values["a"] = 0.2
    assert desk.run(6)
    del desk.values["a"]
    while desk.evaluator.knows(Kind.VM, "a"):
        desk.run(60)
        desk.evaluator.tick(T0 + seconds(desk.at_s))
    desk.run(6)
    desk.values["a"] = 0.0
    assert all(not order.fast for order in desk.run(30))
    desk.values["a"] = 0.2
    assert brief(desk.run(6)) == [("h1", ["a"], [])]
