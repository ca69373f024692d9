"""The evaluator's state on disk, checked before any of it is taken up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from virtpilot.errors import StateError
from virtpilot.model import Kind, SignalState
from virtpilot.rules.signals.table import SavedRow, Time

VERSION: Final = 1


class SavedRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule's machine: (subject, state, since, last seen to hold) of all that are not inactive."""

    name: str
    digest: str
    states: list[tuple[str, SignalState, Time, Time]]


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole state."""

    version: int
    tables: dict[Kind, list[SavedRow]]
    knobs: list[tuple[str, str, float, Time]]
    rules: list[SavedRule]


def checked(snapshot: Mapping[str, Any]) -> Saved:
    """Return a snapshot's state; raises StateError where it is another version's or damaged."""
    version = snapshot.get("version") if isinstance(snapshot, Mapping) else None
    if version != VERSION:
        raise StateError(f"signals: version {str(version)[:40]} is not known, this one is {VERSION}")
    try:
        saved = msgspec.convert(snapshot, Saved)
    except msgspec.ValidationError as error:
        raise StateError(f"signals: {error}") from error
    for kind, rows in saved.tables.items():
        if any(row.subject.kind is not kind for row in rows):
            raise StateError(f"signals: the subjects of kind {kind} hold one of another kind")
    return saved
