"""A clock that is set neither ends a span nor makes it last: of the controller alone, of all machines, or put right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from tests.demos import CPU_RULES
from virtpilot.clock import SECOND, VirtualClock, seconds
from virtpilot.model import Command, Decision, Outcome, Signal, SignalState
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.timeline import Timeline, moved

HOUR_S = 3600.0
PLAYED_S = 200


class Watched:
    """A timeline whose moves are noted, and three hosts; `skew_s` is how far each one's clock is ahead of ours."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.moves: list[int] = []
        self.time = Timeline(clock, self.moves.append)
        self.skew_s = {"h1": 0.0, "h2": 0.0, "h3": 0.0}

    def beat(self, *hosts: str) -> None:
        self.clock.advance(1)
        for host in hosts or self.skew_s:
            self.time.hear(host, self.clock.now_ns() + seconds(self.skew_s[host]))

    def wrong_s(self) -> float:
        return (self.time.now_ns() - self.clock.now_ns()) / SECOND


@pytest.fixture
def watched() -> Watched:
    return Watched(VirtualClock())


def test_a_clock_that_runs_is_followed(watched: Watched) -> None:
    for _ in range(100):
        watched.beat()
        watched.clock.step(0.3)
        assert watched.wrong_s() == 0.0
    assert watched.moves == []


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S, 5.0, -90.0])
def test_what_is_remembered_moves_along_once_most_hosts_have_the_new_time(watched: Watched, by_s: float) -> None:
    watched.beat()
    before_ns = watched.time.now_ns()
    watched.clock.step(by_s)
    assert watched.time.now_ns() == before_ns, "no time has passed"
    watched.beat("h1")
    assert (watched.moves, watched.wrong_s()) == ([], -by_s)
    watched.beat("h2")
    assert (watched.moves, watched.wrong_s()) == ([seconds(by_s)], 0.0)
    watched.beat()
    assert len(watched.moves) == 1


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_where_the_hosts_go_on_as_before_so_does_time(watched: Watched, by_s: float) -> None:
    watched.beat()
    watched.clock.step(by_s)
    watched.skew_s = dict.fromkeys(watched.skew_s, -by_s)
    for _ in range(100):
        watched.beat()
        assert watched.wrong_s() == -by_s
    watched.clock.step(-by_s)
    watched.skew_s = dict.fromkeys(watched.skew_s, 0.0)
    watched.beat()
    assert (watched.moves, watched.wrong_s()) == ([], 0.0)


def test_hosts_that_are_set_one_after_the_other_are_waited_for(watched: Watched) -> None:
    watched.beat()
    watched.clock.step(HOUR_S)
    watched.skew_s = dict.fromkeys(watched.skew_s, -HOUR_S)
    for host in ("h1", "h2"):
        for _ in range(10):
            watched.beat()
        assert watched.moves == []
        watched.skew_s[host] = 0.0
    watched.beat()
    assert (watched.moves, watched.wrong_s()) == ([seconds(HOUR_S)], 0.0)


def test_a_wrong_clock_that_is_put_right_moves_nothing(watched: Watched) -> None:
    """What it remembers from before it was wrong is right again."""
    watched.skew_s = dict.fromkeys(watched.skew_s, HOUR_S)
    watched.beat()
    watched.clock.step(HOUR_S)
    watched.skew_s = dict.fromkeys(watched.skew_s, 0.0)
    watched.beat()
    assert (watched.moves, watched.wrong_s()) == ([], 0.0)


def test_a_backlog_decides_nothing(watched: Watched) -> None:
    watched.beat()
    watched.clock.step(HOUR_S)
    for age_s in range(100, 3_000, 100):
        for host in watched.skew_s:
            watched.time.hear(host, watched.clock.now_ns() - seconds(age_s))
    assert (watched.moves, watched.wrong_s()) == ([], -HOUR_S)


def test_hosts_that_are_gone_do_not_count(watched: Watched) -> None:
    watched.beat()
    for _ in range(150):
        watched.beat("h1")
    watched.clock.step(HOUR_S)
    watched.beat("h1")
    assert watched.moves == [seconds(HOUR_S)]


def test_moments_move_and_spans_do_not() -> None:
    now_ns = VirtualClock().now_ns()
    document = {"a": {"until_ns": now_ns, "cooldown_ns": 600 * SECOND, "n": now_ns}, "b": [{"at_ns": 0, "left": 1.5}]}
    expected = {"a": document["a"] | {"until_ns": now_ns + 5}, "b": document["b"]}  # type: ignore[operator]
    assert moved(document, 5) == expected


class Told(msgspec.Struct):
    """What a demo's controller decided and did, by the second, and what was left of each cooldown at the end."""

    records: list[tuple[int, str, str, str]] = []
    cooldowns: dict[str, int] = {}


def told(demo: Demo, steps: dict[int, Callable[[], None]]) -> Told:
    """Play, setting clocks in some seconds. A signal that no rule waits for any longer is left out."""
    found, known = Told(), 0
    for second in range(PLAYED_S):
        steps.get(second, lambda: None)()
        demo.step()
        entries = [entry.record for entry in demo.controller.books.records.entries()]
        found.records += [(second, *said) for record in entries[known:] if (said := words(record)) is not None]
        known = len(entries)
    now_ns = demo.controller._time.now_ns()
    saved = demo.controller.pilot.guards.saved()
    for name in ("rules", "guests"):
        found.cooldowns |= {f"{name} {key}": (one.until_ns - now_ns) // SECOND for key, one in saved[name].items()}
    demo.close()
    return found


def words(record: object) -> tuple[str, str, str] | None:
    """Return what a record says, None for what only passes."""
    match record:
        case Signal(state=SignalState.FIRING | SignalState.CLEARING):
            return ("signal", record.rule, record.state.value)
        case Decision():
            return ("decision", record.rule, record.guard)
        case Command():
            return ("command", record.rule, type(record.action).__name__)
        case Outcome():
            return ("outcome", record.rule, record.result.value)
    return None


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Told:
    played = told(Demo(tmp_path_factory.mktemp("even"), rules=CPU_RULES), {})
    results = [word for _second, kind, _rule, word in played.records if kind == "outcome"]
    assert {"done", "ineffective", "effective"} <= set(results), "all kinds of waiting were there"
    assert max(played.cooldowns.values()) > 0
    return played


class Apart:
    """A clock that is set while all others go on."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.ahead_s = 0.0

    def set(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def now_ns(self) -> int:
        return self._clock.now_ns() + seconds(self.ahead_s)

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_a_controller_whose_own_clock_is_wrong_for_a_while_does_all_as_it_would(
    tmp_path: Path, even: Told, by_s: float
) -> None:
    """Signals, commands, effects and cooldowns come in the same second, each with the same word."""
    demo = Demo(tmp_path, rules=CPU_RULES)
    apart = Apart(demo.clock)
    demo.controller._clock = apart
    demo.controller._time = Timeline(apart, demo.controller._on_moved)
    assert told(demo, {30: lambda: apart.set(by_s), 150: lambda: apart.set(0.0), 184: lambda: apart.set(by_s)}) == even


def test_all_clocks_set_together_change_nothing(tmp_path: Path, even: Told) -> None:
    """Forward in the middle of `for`, back while an effect is measured, forward in a cooldown.

    Each by another time, so that no moment noted under an earlier one is right again by chance.
    """
    demo = Demo(tmp_path, rules=CPU_RULES)
    hours = {30: 1, 100: -2, 184: 4}
    assert told(demo, {at_s: partial(demo.clock.step, by * HOUR_S) for at_s, by in hours.items()}) == even
