"""Trails: what happened to one guest, from the sample that raised a signal to the measured effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from rich.filesize import decimal

from virtpilot.action import Decided, Divide, Migrate, SetKnob, action_name
from virtpilot.events import Event
from virtpilot.knobs import shown
from virtpilot.model import Command, Decision, Outcome, Result, Signal, SignalState
from virtpilot.pipeline.records import Entry


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a trail; `cause` is the id of another step, None for a sample."""

    kind: str
    id: str
    cause: str | None
    at: float
    what: str
    result: str = ""
    reason: str = ""


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """One firing of one rule on one guest with all that followed; before and after are measured values."""

    guest: str
    name: str
    rule: str
    steps: list[Step]
    before: dict[str, float | str]
    after: dict[str, float | str]
    helped: bool
    cleared: bool


def trails(entries: Iterable[Entry]) -> list[Trail]:
    """Return a trail for each firing signal, in order of firing."""
    entries = list(entries)
    roots = [e.record for e in entries if isinstance(e.record, Signal) and _fires(e.record)]
    return [_trail(root, entries) for root in roots]


def _fires(signal: Signal) -> bool:
    return signal.state is SignalState.FIRING and signal.previous is not SignalState.CLEARING


def _trail(root: Signal, entries: list[Entry]) -> Trail:
    ids = {root.id}
    members = [Entry("signal", root)]
    cleared = False
    for entry in entries:
        record = entry.record
        if entry.at_ns < root.at_ns or record.id in ids:
            continue
        if isinstance(record, Signal):
            same = record.rule == root.rule and record.subject.key == root.subject.key
            if same and not cleared and record.state in {SignalState.CLEARING, SignalState.INACTIVE}:
                cleared = record.state is SignalState.INACTIVE
                members.append(entry)
            elif same and _fires(record):
                break
        elif record.cause in ids:
            ids.add(record.id)
            members.append(entry)
    return Trail(
        guest=root.subject.id,
        name=root.subject.name,
        rule=root.rule,
        steps=[step for entry in members for step in _steps(entry)],
        before=dict(root.inputs) | {"host": root.subject.host},
        after=_after(members),
        helped=any(isinstance(e.record, Outcome) and e.record.result is Result.EFFECTIVE for e in members),
        cleared=cleared,
    )


def _after(members: list[Entry]) -> dict[str, float | str]:
    """Return the measurements of the last effect and the place of the last move."""
    after: dict[str, float | str] = {}
    for entry in members:
        record = entry.record
        if isinstance(record, Outcome) and record.result in {Result.EFFECTIVE, Result.INEFFECTIVE}:
            after |= record.after
        elif isinstance(record, Command) and isinstance(record.action, Migrate):
            after["host"] = record.action.target
    return after


def _steps(entry: Entry) -> Iterator[Step]:
    record, at = entry.record, entry.at_ns / 1e9
    match record:
        case Signal():
            yield Step(kind="sample", id=record.cause, cause=None, at=at, what=_values(record.inputs))
            what = f"{record.rule}: {record.previous} → {record.state}"
            yield Step(kind="signal", id=record.id, cause=record.cause, at=at, what=what, result=record.state)
        case Decision():
            verdict = "accepted" if record.accepted else "refused"
            what = describe(record.action) if record.action is not None else f"remedy {record.rung + 1}"
            result = verdict if record.accepted else f"{verdict} by {record.guard}"
            yield _step(entry, what, result, record.reason)
        case Command():
            yield _step(entry, f"{describe(record.action)} on {record.host}", "", "")
        case Outcome():
            yield _step(entry, f"{record.action}  {changes(record)}".strip(), record.result, record.reason)
        case Event():
            yield _step(entry, happened(record), "", "")


def _step(entry: Entry, what: str, result: str, reason: str) -> Step:
    record = entry.record
    return Step(
        kind=entry.kind, id=record.id, cause=record.cause, at=entry.at_ns / 1e9, what=what, result=result, reason=reason
    )


def describe(action: Decided) -> str:
    """Return an action in a few words."""
    match action:
        case SetKnob():
            before, after = shown(action.knob, action.expected), shown(action.knob, action.value)
            return f"set {action.knob} {before} → {after} for {action.lease_s:g} s"
        case Divide():
            sets = ", ".join(f"{one.expected} → {one.value}" for one in action.sets)
            return f"{action_name(action)}: {action.sets[0].knob} {sets}"
        case Migrate():
            return f"migrate to {action.target}"
        case _:
            return action_name(action)


def happened(event: Event) -> str:
    """Return an event in a few words."""
    what = " ".join(filter(None, (event.kind.replace("_", " "), event.detail, _values(event.numbers))))
    return f"{what} on {event.host}"


def changes(outcome: Outcome) -> str:
    """Return an outcome's values, `before → after` where both are known."""
    before, after = outcome.before, outcome.after
    known = [f"{name} {_change(name, before.get(name), value)}" for name, value in sorted(after.items())]
    return ", ".join(known) or _values(before)


def _change(name: str, before: float | None, after: float) -> str:
    return number(name, after) if before is None else f"{number(name, before)} → {number(name, after)}"


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(name, value)}" for name, value in sorted(values.items()))


def number(name: str, value: float) -> str:
    """Return a field's value for a person, by the unit that ends its name."""
    if name.endswith("_ratio"):
        return f"{value:.0%}"
    if name.endswith("_seconds"):
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    if name.endswith("_bytes"):
        return str(decimal(int(value)))
    return f"{value:g}"


def document(found: Iterable[Trail]) -> list[dict[str, Any]]:
    """Return trails as JSON-able values."""
    result: list[dict[str, Any]] = msgspec.to_builtins(list(found))
    return result
