"""Oscillation: to and fro between hosts, up and down of a knob; damped more and more, and alarmed about."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.guards.asked import FREE, Story
from tests.thoroughness import examples
from virtpilot.model import Result

LIMITS = replace(FREE, oscillation_window_s=7200, oscillation_backoff_s=600)


def reason(story: Story, second: float, **changes: object) -> str:
    refusal = story.ask(second, **changes)
    assert refusal is None or refusal.guard == "oscillation"
    return refusal.reason if refusal is not None else ""


def test_a_guest_may_not_go_back_at_once_and_each_return_waits_twice_as_long() -> None:
    story, here, away, now = Story(LIMITS), "host-1", "host-2", 0.0
    waited = []
    for _ in range(5):
        began = now
        while reason(story, now, host=here, target=away):
            now += 60
        waited.append(now - began)
        story.do(now, host=here, target=away)
        here, away = away, here
    assert waited == [0, 600, 1200, 2400, 4800]


def test_what_it_says_and_whom_it_does_not_concern() -> None:
    story = Story(LIMITS)
    story.do(0, host="host-1", target="host-2")
    assert reason(story, 10, host="host-2", target="host-1") == (
        "the guest went from host-1 to where it is and would go back to host-1: kept from swinging for another 590 s "
        "(0 swings before this)"
    )
    assert list(story.guards.oscillations.alarms()) == [("g1", "place", "the guest went from host-1 to where it is")]
    story.restart()
    assert reason(story, 10, host="host-2", target="host-1") != ""
    assert reason(story, 10, host="host-2", target="host-3") == "", "on to a third host"
    assert reason(story, 10, guest="g2", host="host-2", target="host-1") == ""
    assert reason(story, 10, host="host-2", knob="cpu_shares", value=2, current=1) == ""


def test_a_ring_of_three_is_one_too() -> None:
    story = Story(LIMITS)
    for second, (here, there) in enumerate([("a", "b"), ("b", "c")]):
        assert reason(story, 100 * second, host=here, target=there) == ""
        story.do(100 * second, host=here, target=there)
    assert "back to a" in reason(story, 200, host="c", target="a")


def test_a_knob_may_turn_once_and_then_turns_more_and_more_slowly() -> None:
    story, now, current = Story(LIMITS), 0.0, 100
    waited = []
    for step in range(6):
        value = 200 if step % 2 == 0 else 100
        began = now
        while reason(story, now, knob="cpu_shares", value=value, current=current):
            now += 60
        waited.append(now - began)
        story.do(now, knob="cpu_shares", value=value, current=current)
        current = value
    assert waited == [0, 0, 600, 1200, 2400, 4800]
    ((guest, what, way),) = story.guards.oscillations.alarms()
    assert (guest, what) == ("g1", "cpu_shares")
    assert way == "cpu_shares went up, down, up, down, up, down"


def test_a_knob_that_goes_one_way_is_no_sawtooth() -> None:
    story = Story(LIMITS)
    for step in range(20):
        assert reason(story, step, knob="cpu_shares", value=step + 2, current=step + 1) == ""
        story.do(step, knob="cpu_shares", value=step + 2, current=step + 1)
    assert list(story.guards.oscillations.alarms()) == []


def test_what_was_not_done_is_no_step() -> None:
    story = Story(LIMITS)
    for second, result in enumerate([Result.FAILED, Result.REFUSED]):
        story.do(second, result, host="host-1", target="host-2")
    assert reason(story, 5, host="host-2", target="host-1") == ""


def test_after_the_window_all_is_forgotten() -> None:
    story = Story(LIMITS)
    for second in (0, 1000):
        story.do(second, host="host-1", target="host-2")
        story.do(second + 500, host="host-2", target="host-1")
    assert list(story.guards.oscillations.alarms()) != []
    assert reason(story, 8700, host="host-1", target="host-2") == ""
    assert list(story.guards.oscillations.alarms()) == []
    assert not any(story.guards.saved().values())


def test_it_can_be_switched_off() -> None:
    story = Story(replace(LIMITS, oscillation_window_s=0))
    for second in range(6):
        here, there = ("a", "b") if second % 2 == 0 else ("b", "a")
        assert reason(story, second, host=here, target=there) == ""
        story.do(second, host=here, target=there)


moves = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900)), max_size=60)


@settings(derandomize=True, deadline=None, max_examples=examples(150))
@given(moves)
def test_no_guest_ever_returns_within_the_back_off(wishes: list[tuple[int, int]]) -> None:
    """Whatever is wanted, and with a restart at each step: a host is never come back to before its time."""
    story, now, here = Story(LIMITS), 0.0, 0
    left: dict[int, float] = {}
    for goal, gap in wishes:
        now += gap
        story.restart()
        if goal == here or reason(story, now, host=f"h{here}", target=f"h{goal}"):
            continue
        assert now - left.get(goal, -10_000.0) >= 600
        left[here] = now
        story.do(now, host=f"h{here}", target=f"h{goal}")
        here = goal
