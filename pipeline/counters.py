"""What the controller did, counted for the exporter."""

from __future__ import annotations

import msgspec

from virtpilot.events import EventKind
from virtpilot.model import Command, Decision, Outcome, Signal
from virtpilot.pipeline.records import Record

_KINDS = frozenset(EventKind)


class Counters(msgspec.Struct):
    """Grow only."""

    messages: int = 0
    samples: int = 0
    bad_lines: int = 0
    bad_messages: int = 0
    signals: int = 0
    accepted: int = 0
    refused: dict[str, int] = {}
    commands: int = 0
    outcomes: dict[str, int] = {}
    events: dict[str, int] = {}

    def record(self, record: Record) -> None:
        """Count a record of the log."""
        match record:
            case Signal():
                self.signals += 1
            case Decision(accepted=True):
                self.accepted += 1
            case Decision():
                self.refused[record.guard] = self.refused.get(record.guard, 0) + 1
            case Command():
                self.commands += 1
            case Outcome():
                self.outcomes[record.result] = self.outcomes.get(record.result, 0) + 1

    def event(self, kind: str) -> str:
        """Count an event and return its kind as it is counted."""
        # A host that is not ours to trust must not make the page grow without end.
        kind = kind if kind in _KINDS else "unknown"
        self.events[kind] = self.events.get(kind, 0) + 1
        return kind
