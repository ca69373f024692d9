"""An explanation as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from virtpilot.clock import SECOND
from virtpilot.events import Event
from virtpilot.model import Command, Decision, Outcome, Signal, SignalState
from virtpilot.pipeline.evaluations import Evaluation
from virtpilot.pipeline.explain import Answer, RuleAnswer
from virtpilot.pipeline.moment import shown, zoned
from virtpilot.pipeline.records import Record
from virtpilot.pipeline.trail import changes, describe, number

_MINUTE: Final = 60 * SECOND
_HELD: Final = {True: "true", False: "false", None: "not known"}


def lines(answer: Answer) -> Iterator[str]:
    """Yield the whole answer."""
    subject = answer.subject
    where = f" on {subject.host}" if subject.host not in {"", subject.id} else ""
    yield f"{subject.name or subject.id} ({subject.kind} {subject.id}{where}) at {zoned(answer.at_ns)}"
    yield from _outside(answer)
    if not answer.rules:
        yield "no rule is about it"
    quiet = [one.rule for one in answer.rules if one.seen is None and not one.happened]
    for one in answer.rules:
        if one.rule not in quiet:
            yield from _rule(one)
    if quiet:
        yield ""
        yield f"no comparison of these has held, nothing is kept of them (a history would tell): {', '.join(quiet)}"


def _outside(answer: Answer) -> Iterator[str]:
    """Yield what is to be known of a time of which nothing is kept."""
    begin_ns, end_ns = answer.kept_ns or (answer.at_ns, answer.at_ns)
    if answer.at_ns < begin_ns:
        yield f"what is kept begins after this time, at {shown(begin_ns)}"
    if answer.at_ns > end_ns + _MINUTE:
        yield f"what is kept ends before this time, at {shown(end_ns)}: what follows is as it was then"


def _rule(answer: RuleAnswer) -> Iterator[str]:
    since = f" since {shown(answer.since_ns)}" if answer.since_ns is not None else ""
    yield ""
    yield f"{answer.rule}: {answer.state}{since}"
    yield f"  {answer.why}"
    if answer.seen is not None:
        yield from _seen(answer.seen)
    if answer.happened:
        yield "  what happened" if answer.state is not SignalState.INACTIVE else "  what happened last"
        yield from (f"    {told(entry.record)}" for entry in answer.happened)


def _seen(seen: Evaluation) -> Iterator[str]:
    yield f"  seen {shown(seen.at_ns)}: " + (
        ", ".join(f"{name} {number(name, value)}" for name, value in seen.values.items()) or "nothing known"
    )
    width = max((len(clause.text) for clause in seen.clauses), default=0)
    for clause in seen.clauses:
        yield f"    {clause.key:<6} {clause.text:<{width}}  {_HELD[clause.held]}"


def told(record: Record) -> str:
    """Return a record in a line."""
    match record:
        case Signal():
            return f"{shown(record.at_ns)} {record.previous} → {record.state}"
        case Decision():
            what = describe(record.action) if record.action is not None else f"remedy {record.rung + 1}"
            verdict = "accepted" if record.accepted else f"refused by the guard {record.guard}"
            return f"{shown(record.at_ns)} {what}: {verdict}: {record.reason}"
        case Command():
            return f"{shown(record.issued_ns)} command to {record.host}: {describe(record.action)}"
        case Outcome():
            return ": ".join(filter(None, (f"{shown(record.at_ns)} {record.action} {record.result}", *_said(record))))
        case Event():
            return f"{shown(record.at_ns)} {record.kind}"


def _said(outcome: Outcome) -> tuple[str, str]:
    return changes(outcome), outcome.reason
