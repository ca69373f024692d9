"""Foreign changes: what somebody else works on is left alone."""

from __future__ import annotations

from msgspec.structs import replace

from tests.guards.asked import FREE, Story, at

LIMITS = replace(FREE, foreign_backoff_s=600)


def reason(story: Story, second: float, **changes: object) -> str:
    refusal = story.ask(second, **changes)
    assert refusal is None or refusal.guard == "foreign-change"
    return refusal.reason if refusal is not None else ""


def test_the_guest_is_left_alone_for_the_time() -> None:
    story = Story(LIMITS)
    story.guards.foreign.noticed("g1", "set cpu_shares of it", at(0), at(5))
    told = "somebody else set cpu_shares of it: the guest is left alone for another 590 s"
    assert reason(story, 10) == told
    assert reason(story, 10, guest="g2") == ""
    story.restart()
    assert reason(story, 10) == told
    assert reason(story, 599) != ""
    assert reason(story, 600) == ""
    assert not any(story.guards.saved().values()), "and forgotten"


def test_the_latest_change_counts_and_old_news_change_nothing() -> None:
    story = Story(LIMITS)
    story.guards.foreign.noticed("g1", "moved it", at(100), at(100))
    story.guards.foreign.noticed("g1", "set cpu_shares of it", at(50), at(101))
    assert reason(story, 690).startswith("somebody else moved it")
    story.guards.foreign.noticed("g1", "set cpu_shares of it", at(300), at(301))
    assert reason(story, 890).startswith("somebody else set")


def test_a_hosts_clock_that_goes_ahead_does_not_stretch_it() -> None:
    story = Story(LIMITS)
    story.guards.foreign.noticed("g1", "moved it", at(100_000), at(0))
    assert reason(story, 599) != ""
    assert reason(story, 600) == ""


def test_no_back_off_no_guard() -> None:
    story = Story(replace(LIMITS, foreign_backoff_s=0))
    story.guards.foreign.noticed("g1", "moved it", at(0), at(0))
    assert reason(story, 0) == ""
