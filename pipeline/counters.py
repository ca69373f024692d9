"""What the controller did, counted for the exporter; and which events explain something."""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from virtpilot.events import LIFECYCLE, By, Event, EventKind
from virtpilot.lineblocks import Lines
from virtpilot.model import Command, Decision, Outcome, Signal
from virtpilot.pipeline.records import Record

log = structlog.get_logger(__name__)

_KINDS: Final = frozenset(EventKind)
# Knobs that somebody else has changed explain something too; those that virtpilot changed are told by their outcome.
_EXPLAINING: Final = LIFECYCLE | {
    EventKind.JOB_COMPLETED,
    EventKind.JOB_ENDED,
    EventKind.IO_ERROR,
    EventKind.WATCHDOG,
    EventKind.CONTROL_ERROR,
    EventKind.MEMORY_FAILURE,
    EventKind.LEASE_TAKEN,
    EventKind.LEASE_LEFT,
    EventKind.EVENTS_LOST,
}


class Counters(msgspec.Struct):
    """The counts since the start."""

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
    save_failures: int = 0

    def heard(self, topic: str, lines: Lines) -> None:
        """Count what a message of metrics held."""
        self.samples += len(lines)
        if lines.bad:
            self.bad_lines += len(lines.bad)
            log.warning("malformed lines", topic=topic, count=len(lines.bad), first=lines.bad[0].reason)

    def record(self, record: Record) -> None:
        """Count a record that is new."""
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

    def event(self, event: Event) -> bool:
        """Count an event, and tell whether it explains what was measured or done."""
        # A host that is not ours to trust must not make the page grow without end.
        kind = event.kind if event.kind in _KINDS else "unknown"
        self.events[kind] = self.events.get(kind, 0) + 1
        return kind in _EXPLAINING or (kind == EventKind.KNOB_CHANGED and event.by is By.OTHER)
