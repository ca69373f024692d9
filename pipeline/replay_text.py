"""A replay as lines for a person: what happened, then the figures, of two rule sets side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from virtpilot.events import Event
from virtpilot.model import Command, Decision, Outcome, Signal, SignalState
from virtpilot.pipeline.moment import shown, zoned
from virtpilot.pipeline.records import Record
from virtpilot.pipeline.replay import ON, Replayed, fires, violations
from virtpilot.pipeline.trail import changes, describe

MAX_LINES: Final = 200
_FIGURES: Final = ("fired", "minutes_in_violation", "accepted", "refused", "migrations", "effective")
_TOTALS: Final = ("commands", "migrations", "minutes_in_violation")


def lines(document: Mapping[str, Any], sets: Sequence[Replayed]) -> Iterator[str]:
    """Yield the report."""
    told = document["history"]
    start_ns, end_ns = sets[0].start_ns, sets[0].end_ns
    yield f"{told['samples']} samples of {told['hosts']} hosts and {told['guests']} guests"
    yield f"{shown(start_ns)} to {zoned(end_ns)}"
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
            ends = record.state is SignalState.INACTIVE and record.previous in ON
            if not fires(record) and not ends:
                return ""  # what waited only is no news
            return f"{shown(record.at_ns)}  {record.subject.name or record.subject.id}: {record.rule} {record.state}"
        case Decision():
            what = describe(record.action) if record.action is not None else f"remedy {record.rung + 1}"
            verdict = "" if record.accepted else f" refused by {record.guard}"
            return f"{shown(record.at_ns)}    {record.subject.name}: {what}{verdict} ({record.reason})"
        case Outcome():
            what = f"{names.get(record.guest, record.guest)}: {record.action} {record.result}"
            return f"{shown(record.at_ns)}    {'  '.join(filter(None, (what, changes(record), record.reason)))}"
        case Command() | Event():
            return ""


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    letters = [letter for letter in "ab" if letter in document]
    every = list(dict.fromkeys(name for letter in letters for name in document[letter]["rules"]))
    names = [name for name in every if any(any(document[each]["rules"].get(name, {}).values()) for each in letters)]
    head = [f"rule{' (a → b)' if len(letters) > 1 else ''}", *(one.replace("_in_violation", "") for one in _FIGURES)]
    rows = [[name, *_cells([document[each]["rules"].get(name, {}) for each in letters])] for name in names]
    first, *widths = (max(map(len, column)) for column in zip(head, *rows, strict=True))
    yield ""
    for row in (head, *rows):
        cells = (f"{cell:>{width + 2}}" for cell, width in zip(row[1:], widths, strict=True))
        yield row[0].ljust(first) + "".join(cells)
    if len(names) < len(every):
        yield f"nothing of {len(every) - len(names)} more rules"
    for total in _TOTALS:
        yield f"{total.replace('_', ' ')}: {_cell([document[letter][total] for letter in letters])}"


def _cells(own: Sequence[Mapping[str, float]]) -> Iterator[str]:
    return (_cell([figures.get(figure) for figures in own]) for figure in _FIGURES)


def _cell(values: Sequence[float | None]) -> str:
    return " → ".join("-" if value is None else f"{value:g}" for value in values)


def _differing(found: Mapping[str, Any], one: Replayed, other: Replayed) -> Iterator[str]:
    yield ""
    for letter, key in (("a", "only_a"), ("b", "only_b")):
        only = found[key]
        signals = "1 signal" if len(only) == 1 else f"{len(only)} signals"
        yield f"{signals} fired in {letter} alone, or at another time"
        for each in only[: MAX_LINES // 4]:
            yield f"  {shown(round(each['at'] * 1e9))}  {each['subject']}: {each['rule']}"
    if violations(one) == violations(other):
        yield "both fire on the same subjects at the same times"
