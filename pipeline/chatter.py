"""Thresholds that chatter: rules whose signals begin again and again on recorded history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from virtpilot.clock import seconds
from virtpilot.model import Mode
from virtpilot.pipeline.history import Span, read, wanted_by
from virtpilot.pipeline.replay import replay, violations
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions
from virtpilot.rules.language import RuleSet

MAX_TIMES: Final = 3
WITHIN_NS: Final = seconds(3600)


def chatter(ruleset: RuleSet, history: str) -> Iterator[tuple[str, str]]:
    """Yield each rule that fires on one subject more than three times within an hour, with what to say of it."""
    wanted = wanted_by(Rulebook(RuleOptions(), ruleset).wanted)
    played = replay(read(history, wanted, Span()), ruleset, Mode.OBSERVE)
    worst: dict[str, tuple[int, str]] = {}
    for (rule, subject), times in violations(played).items():
        worst[rule] = max(worst.get(rule, (0, "")), (_most(times), subject))
    for rule, (most, subject) in sorted(worst.items()):
        if most > MAX_TIMES:
            told = f"fired {most} times within an hour on {subject} in this history"
            yield rule, f"{told}: a longer `for`, or a `clear` further off?"


def _most(times: list[int]) -> int:
    """Return how many of these times lie within one hour at most."""
    most, recent = 0, deque[int]()
    for time_ns in times:
        recent.append(time_ns)
        while recent[0] <= time_ns - WITHIN_NS:
            recent.popleft()
        most = max(most, len(recent))
    return most
