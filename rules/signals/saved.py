"""The evaluator's state on disk, checked before any of it is taken up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from virtpilot.errors import StateError
from virtpilot.model import Kind, Signal, SignalState
from virtpilot.rules.signals.table import SavedTable

VERSION: Final = 2
Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class SavedRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule's machine: (subject, state, since, last seen to hold) of all that are not inactive."""

    name: str
    digest: str
    states: list[tuple[str, SignalState, Time, Time]]


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole state."""

    version: int
    tables: dict[Kind, SavedTable]
    knobs: list[tuple[str, str, float, Time]]
    rules: list[SavedRule]


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transition after the whole state was saved: what the machine keeps of it, the time of the newest sample."""

    signal: Signal
    digest: str
    time: Time
    since: Time
    seen: Time


def checked(snapshot: Mapping[str, Any]) -> Saved:
    """Return a snapshot's state; raises StateError where it is another version's or damaged."""
    version = snapshot.get("version") if isinstance(snapshot, Mapping) else None
    if version != VERSION:
        raise StateError(f"signals: version {str(version)[:40]} is not known, this one is {VERSION}")
    try:
        saved = msgspec.convert(snapshot, Saved)
    except msgspec.ValidationError as error:
        raise StateError(f"signals: {error}") from error
    for kind, table in saved.tables.items():
        if problem := table.problem(kind):
            raise StateError(f"signals: {problem}")
    return saved


def checked_turns(turns: Mapping[str, Any]) -> list[Turn]:
    """Return the transitions since, by when they came; raises StateError."""
    try:
        return sorted(msgspec.convert(list(turns.values()), list[Turn]), key=lambda turn: turn.signal.at_ns)
    except msgspec.ValidationError as error:
        raise StateError(f"signals: {error}") from error
