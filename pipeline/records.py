"""The record log: every signal, decision, command and outcome that the controller saw or made, in order, and the
events that explain something.

Memory holds the newest; with a file, each one is also appended there as a JSON line. Trails are walked from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from virtpilot.events import Event
from virtpilot.model import Command, Decision, Outcome, Signal

log = structlog.get_logger(__name__)

Record = Signal | Decision | Command | Outcome | Event
KindName = Literal["signal", "decision", "command", "outcome", "event"]

_KINDS: Final[dict[type, KindName]] = {
    Signal: "signal",
    Decision: "decision",
    Command: "command",
    Outcome: "outcome",
    Event: "event",
}
RECORDS: Final = "records.jsonl"
MAX_FILE_BYTES: Final = 64 * 1024 * 1024


class Entry(msgspec.Struct, frozen=True):
    """A record in the log with what it is."""

    kind: KindName
    record: Record

    @property
    def at_ns(self) -> int:
        """When it came to be."""
        return self.record.issued_ns if isinstance(self.record, Command) else self.record.at_ns


class _Line(msgspec.Struct):
    kind: KindName
    record: msgspec.Raw


_TYPES: Final[dict[KindName, type[Record]]] = {
    "signal": Signal,
    "decision": Decision,
    "command": Command,
    "outcome": Outcome,
    "event": Event,
}


class RecordLog:
    """Append-only; a record whose id is known already is not added again (QoS 1 delivers duplicates)."""

    def __init__(self, path: Path | None = None, keep: int = 20_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._ids: deque[str] = deque(maxlen=keep)
        self._known: set[str] = set()
        self._path = path
        self._lines: list[bytes] = []
        if path is not None and path.exists():
            for entry in read(path):
                self._remember(entry)

    def add(self, record: Record) -> bool:
        """Append; False when it was there already. What is added is in the file after the next `flush`."""
        if record.id in self._known:
            return False
        entry = Entry(_KINDS[type(record)], record)
        self._remember(entry)
        if self._path is not None:
            self._lines.append(msgspec.json.encode(entry) + b"\n")
        return True

    def _remember(self, entry: Entry) -> None:
        if len(self._ids) == self._ids.maxlen:
            self._known.discard(self._ids[0])
        self._ids.append(entry.record.id)
        self._known.add(entry.record.id)
        self._entries.append(entry)

    def flush(self) -> None:
        """Write what was added; a full disk loses lines of this log, and says so, nothing else."""
        path, lines = self._path, b"".join(self._lines)
        self._lines.clear()
        if path is None or not lines:
            return
        try:
            if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
                path.replace(path.with_suffix(path.suffix + ".1"))
            with path.open("ab") as file:
                file.write(lines)
        except OSError as error:
            log.error("record log cannot be written", path=str(path), error=str(error))

    def entries(self) -> Iterable[Entry]:
        """Return what is remembered, oldest first."""
        return tuple(self._entries)


def read(path: Path) -> Iterable[Entry]:
    """Yield the records of a log file; a torn or foreign line is left out and said."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = msgspec.json.decode(raw, type=_Line)
                yield Entry(line.kind, msgspec.json.decode(line.record, type=_TYPES[line.kind]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.warning("record log: line left out", path=str(path), line=number, error=str(error))
