"""A replay as lines for a person: what happened, then the figures, of two rule sets side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from virtpilot.events import Event
from virtpilot.model import Command, Decision, Outcome, Signal, SignalState
from virtpilot.pipeline.moment import shown
from virtpilot.pipeline.records import Record
from virtpilot.pipeline.replay import Replayed, fires, violations
from virtpilot.pipeline.trail import changes, describe

MAX_LINES: Final = 200
_FIGURES: Final = ("fired", "minutes_in_violation", "accepted", "refused", "migrations", "effective")
_TOTALS: Final = ("commands", "migrations", "minutes_in_violation")


def lines(document: Mapping[str, Any], sets: Sequence[Replayed]) -> Iterator[str]:
    """Yield the report."""
    told = document["history"]
    start_ns, end_ns = sets[0].start_ns, sets[0].end_ns
    of = f"{told['samples']} samples of {told['hosts']} hosts and {told['guests']} guests"
    yield f"{of}, {shown(start_ns)} to {shown(end_ns)}"
    if len(sets) == 1:
        yield from _happened(sets[0])
    yield from _table(document)
    if len(sets) > 1:
        yield from _differing(document["difference"], *sets)


def _happened(played: Replayed) -> Iterator[str]:
    found = [line for record in played.records if (line := told(record, played.names))]
    yield from found[:MAX_LINES]
    if len(found) > MAX_LINES:
        yield f"… and {len(found) - MAX_LINES} more: --json has all"


def told(record: Record, names: Mapping[str, str]) -> str:
    """Return a record in a line; "" for one that is only on the way to another."""
    match record:
        case Signal():
            if not fires(record) and record.state is not SignalState.INACTIVE:
                return ""
            return f"{shown(record.at_ns)}  {record.subject.name or record.subject.id}: {record.rule} {record.state}"
        case Decision():
            what = describe(record.action) if record.action is not None else f"remedy {record.rung + 1}"
            verdict = "" if record.accepted else f" refused by {record.guard}"
            return f"{shown(record.at_ns)}    {record.subject.name}: {what}{verdict} ({record.reason})"
        case Outcome():
            tail = "  ".join(filter(None, (changes(record), record.reason)))
            name = names.get(record.guest, record.guest)
            return f"{shown(record.at_ns)}    {name}: {record.action} {record.result}  {tail}"
        case Command() | Event():
            return ""


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    letters = [letter for letter in "ab" if letter in document]
    every = list(dict.fromkeys(name for letter in letters for name in document[letter]["rules"]))
    names = [name for name in every if any(any(document[each]["rules"].get(name, {}).values()) for each in letters)]
    width = max(map(len, [*names, "rule"]))
    columns = [figure.replace("_in_violation", "") for figure in _FIGURES]
    two = len(letters) > 1
    yield ""
    yield "rule".ljust(width) + "".join(f"{name + (' a → b' if two else ''):>20}" for name in columns)
    for name in names:
        own = [document[letter]["rules"].get(name, {}) for letter in letters]
        cells = [_cell([figures.get(figure) for figures in own]) for figure in _FIGURES]
        yield name.ljust(width) + "".join(f"{cell:>20}" for cell in cells)
    if len(names) < len(every):
        yield f"nothing of {len(every) - len(names)} more rules"
    for total in _TOTALS:
        yield f"{total.replace('_', ' ')}: {_cell([document[letter][total] for letter in letters])}"


def _cell(values: Sequence[float | None]) -> str:
    return " → ".join("-" if value is None else f"{value:g}" for value in values)


def _differing(found: Mapping[str, Any], one: Replayed, other: Replayed) -> Iterator[str]:
    yield ""
    for letter, key in (("a", "only_a"), ("b", "only_b")):
        only = found[key]
        yield f"{len(only)} signals fired in {letter} alone, or at another time"
        for each in only[: MAX_LINES // 4]:
            yield f"  {shown(round(each['at'] * 1e9))}  {each['subject']}: {each['rule']}"
    if violations(one) == violations(other):
        yield "both fire on the same subjects at the same times"
