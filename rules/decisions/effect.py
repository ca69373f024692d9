"""The outcomes that the second stage itself finds: a measured effect, or that a command's outcome never came."""

from __future__ import annotations

from enum import Enum, auto

from virtpilot.model import Outcome, Result, record_id
from virtpilot.rules.decisions.ladder import Ladder
from virtpilot.rules.decisions.want import Measurements
from virtpilot.rules.language.records import (
    AllocateRemedy,
    Expect,
    MigrateRemedy,
    PowerRemedy,
    Remedy,
    Rule,
    RunRemedy,
    SetRemedy,
)


class Verdict(Enum):
    """What the samples after a remedy say about it."""

    OPEN = auto()
    EFFECTIVE = auto()
    INEFFECTIVE = auto()
    MOOT = auto()


def judge(ladder: Ladder, expect: Expect, now_ns: int, evaluator: Measurements) -> Verdict:
    """Return the verdict on a ladder that measures; moot: the signal has ended without the effect being seen."""
    holds = evaluator.holds(expect.condition, ladder.subject.id, ladder.done_ns)
    late = now_ns > ladder.done_ns + expect.within_ns
    if holds:
        return Verdict.EFFECTIVE
    if ladder.over:
        return Verdict.MOOT if late or holds is False else Verdict.OPEN
    return Verdict.INEFFECTIVE if late else Verdict.OPEN


def measured(ladder: Ladder, remedy: Remedy, result: Result, now_ns: int, after: dict[str, float]) -> Outcome:
    """Return a measured effect; its id is the same however often it is measured."""
    reason = ""
    if result is Result.INEFFECTIVE and remedy.expect is not None:
        seconds = remedy.expect.within_ns / 1e9
        found = "did not hold" if after else "could not be measured"
        reason = f"{remedy.expect.condition.text} {found} within {seconds:g} s"
    return Outcome(
        id=record_id("oc", ladder.done, result),
        cause=ladder.done,
        command=ladder.command,
        host=ladder.host,
        guest=ladder.subject.id,
        result=result,
        at_ns=now_ns,
        action=action_of(remedy),
        rule=ladder.rule,
        reason=reason,
        before=ladder.before,
        after=after,
    )


def lost(ladder: Ladder, remedy: Remedy, now_ns: int) -> Outcome:
    """Return the failure of a command that nobody answered."""
    return Outcome(
        id=record_id("oc", ladder.command, "no outcome"),
        cause=ladder.command,
        command=ladder.command,
        host=ladder.host,
        guest=ladder.subject.id,
        result=Result.FAILED,
        at_ns=now_ns,
        action=action_of(remedy),
        rule=ladder.rule,
        reason=f"no outcome from {ladder.host}",
    )


def read(rule: Rule, remedy: Remedy, subject_id: str, evaluator: Measurements) -> dict[str, float]:
    """Return what the rule's condition and the remedy's expectation read of a subject just now."""
    expected = () if remedy.expect is None else (remedy.expect.condition,)
    return evaluator.inputs(rule.when, subject_id, *expected)


def action_of(remedy: Remedy) -> str:
    """Return a remedy's action as the actuators' own outcomes name it."""
    match remedy:
        case SetRemedy(knob=knob):
            return f"set {knob}"
        case MigrateRemedy():
            return "migrate"
        case AllocateRemedy(knob=knob):
            return f"set {knob}"
        case PowerRemedy(verb=verb):
            return str(verb)
        case RunRemedy(hook=hook):
            return f"run {hook}"
