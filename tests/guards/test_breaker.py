"""Breakers: after failures in a row nothing is tried, then one try, then either all or nothing for longer."""

from __future__ import annotations

from msgspec.structs import replace

from tests.guards.asked import FREE, Story, at
from virtpilot.actuators.guards.breaker import CLOSED, HALF_OPEN, OPEN
from virtpilot.model import Result

LIMITS = replace(FREE, breaker_failures=3, breaker_open_s=100, breaker_open_max_s=350)


def refused(story: Story, second: float, **changes: object) -> str:
    refusal = story.ask(second, **changes)
    assert refusal is None or refusal.guard == "breaker"
    return refusal.reason if refusal is not None else ""


def test_failures_in_a_row_open_it_and_one_try_closes_it() -> None:
    story = Story(LIMITS)
    for second in (0, 1, 2):
        assert refused(story, second) == ""
        story.do(second, Result.FAILED)
    reason = "the breaker of rule starved is open: 3 failures in a row, one try in 97 s"
    assert refused(story, 5) == reason
    assert refused(story, 5, rule="another", host="host-9") == "", "other rules on other hosts go on"
    assert refused(story, 5, rule="another") != "", "on that host nothing works"
    assert story.guards.breakers.states(at(5)) == {"rule starved": OPEN, "host host-1": OPEN}
    story.restart()
    assert refused(story, 5) == reason, "a restart closes nothing"
    assert refused(story, 103) == ""
    trial = story.start(103)
    assert story.guards.breakers.states(at(103)) == {"rule starved": HALF_OPEN, "host host-1": HALF_OPEN}
    assert "half open" in refused(story, 104, guest="g2"), "one try, and no more"
    story.guards.finished(trial, at(105), Result.DONE)
    assert refused(story, 106) == ""
    assert story.guards.breakers.states(at(106)) == {}


def test_a_try_that_fails_opens_it_for_twice_as_long_up_to_a_limit() -> None:
    story, now = Story(LIMITS), 0.0
    for _ in range(3):
        story.do(now, Result.FAILED)
    lasted = []
    for _ in range(4):
        began = now
        while refused(story, now):
            now += 1
        lasted.append(now - began)
        story.do(now, Result.FAILED)
    assert lasted == [100, 200, 350, 350]


def test_effects_that_do_not_come_open_the_rules_but_not_the_hosts() -> None:
    story = Story(LIMITS)
    for second in (0, 1, 2):
        story.do(second, effect_ns=1)
        assert refused(story, second) == "", "done is no success yet, and no failure"
        story.guards.breakers.effect("starved", Result.INEFFECTIVE, at(second))
    assert "rule starved" in refused(story, 3)
    assert story.guards.breakers.states(at(3)) == {"rule starved": OPEN}


def test_the_one_try_waits_for_its_effect() -> None:
    story = Story(LIMITS)
    for second in (0, 1, 2):
        story.guards.breakers.effect("starved", Result.INEFFECTIVE, at(second))
    story.do(110, effect_ns=1)
    assert "half open" in refused(story, 120), "done, but whether it helped is not known"
    story.restart()
    assert "half open" in refused(story, 120)
    story.guards.breakers.effect("starved", Result.EFFECTIVE, at(130))
    assert refused(story, 131) == ""


def test_something_that_helped_ends_a_row() -> None:
    story = Story(LIMITS)
    for second, result in enumerate([Result.FAILED, Result.FAILED, Result.DONE, Result.FAILED, Result.FAILED]):
        story.do(second, result)
    assert refused(story, 9) == ""
    assert story.guards.breakers.states(at(9)) == {"rule starved": CLOSED, "host host-1": CLOSED}


def test_what_an_agent_refused_is_no_failure_and_no_try() -> None:
    story = Story(LIMITS)
    for second in range(10):
        story.do(second, Result.REFUSED)
    assert refused(story, 10) == ""
    for second in (10, 11, 12):
        story.do(second, Result.FAILED)
    story.do(120, Result.REFUSED)
    assert refused(story, 121) == "", "nothing was tried: another may"


def test_a_migration_goes_through_its_targets_breaker_too() -> None:
    story = Story(LIMITS)
    for second in (0, 1, 2):
        story.do(second, Result.FAILED, host="host-9", rule=f"rule-{second}", target="host-2")
    assert "host host-2" in refused(story, 3, target="host-2")
    assert refused(story, 3, target="host-3") == ""


def test_failures_long_ago_make_no_row_and_none_are_counted_where_none_shall_be() -> None:
    story = Story(LIMITS)
    for second in (0, 1, 2000):
        assert refused(story, second) == ""
        story.do(second, Result.FAILED)
    assert refused(story, 2001) == ""
    never = Story(replace(LIMITS, breaker_failures=0))
    for second in range(20):
        never.do(second, Result.FAILED)
    assert refused(never, 21) == ""
    assert never.guards.breakers.states(at(21)) == {}


def test_a_clock_that_was_set_back_keeps_nothing_shut_for_longer() -> None:
    story = Story(LIMITS)
    for second in (10_000, 10_001, 10_002):
        story.do(second, Result.FAILED)
    assert refused(story, 10_003) != ""
    assert refused(story, 0) == ""
