"""The agent's journal: leases, commands seen, operations under way and outcomes to tell, on disk before they matter.

One checksummed JSON line an event, each on disk before `append` returns. A torn tail (power cut, kill -9) is cut off.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from virtpilot.clock import seconds
from virtpilot.errors import StateError
from virtpilot.model import Command, Outcome

log = structlog.get_logger(__name__)

# A command is remembered for so long after its end: longer than any clock skew and any broker's queue.
REMEMBER_NS: Final = seconds(24 * 3600)
_COMPACT_LINES: Final = 4_000


class Lease(msgspec.Struct, frozen=True, tag="lease", kw_only=True):
    """A knob's changed value; `held` once the change was verified. `former` is what it replaced."""

    guest: str
    knob: str
    baseline: int
    value: int
    former: int
    command: str
    rule: str
    end_ns: int
    held: bool = False


class Unleased(msgspec.Struct, frozen=True, tag="unleased"):
    """A lease is over."""

    guest: str
    knob: str


class Started(msgspec.Struct, frozen=True, tag="started"):
    """An operation is about to begin."""

    command: Command
    at_ns: int


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """A command has come to its outcome, which is to be told."""

    outcome: Outcome
    not_after_ns: int


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The broker has the outcome."""

    outcome: str


class Epoch(msgspec.Struct, frozen=True, tag="epoch"):
    """A controller of a newer epoch has spoken: older ones are not obeyed any more."""

    epoch: int


Event = Lease | Unleased | Started | Finished | Told | Epoch


class Journal:
    """The present state, and the file that it can be made from again."""

    def __init__(self, path: Path) -> None:
        self.leases: dict[tuple[str, str], Lease] = {}
        self.operations: dict[str, Started] = {}
        self.untold: dict[str, Outcome] = {}
        self.epoch = 0
        self._outcomes: dict[str, Finished] = {}
        self._path = path
        self._lines = 0
        self._file = None
        self.torn = 0
        try:
            self._read()
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StateError(f"journal {path}: {error}") from error

    def _read(self) -> None:
        if not self._path.exists():
            return
        raw = self._path.read_bytes()
        good = 0
        for line in raw.splitlines(keepends=True):
            event = _decode(line)
            if event is None:
                break
            self._apply(event)
            good += len(line)
            self._lines += 1
        if good < len(raw):
            # Only the last write can be torn; what follows a damaged line was never acknowledged in this order.
            self.torn += 1
            log.warning("journal: torn tail cut off", path=str(self._path), bytes=len(raw) - good)
            os.truncate(self._path, good)

    def append(self, event: Event) -> None:
        """Put an event on disk, then into the state; raises StateError, and then nothing has changed."""
        if self._file is None:
            raise StateError(f"journal {self._path} is closed")
        size = os.fstat(self._file.fileno()).st_size
        line = _encode(event)
        try:
            if self._file.write(line) != len(line):
                raise OSError("short write")
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise StateError(f"journal {self._path}: {error}") from error
        self._apply(event)
        self._lines += 1

    def _apply(self, event: Event) -> None:
        match event:
            case Lease():
                self.leases[event.guest, event.knob] = event
            case Unleased():
                self.leases.pop((event.guest, event.knob), None)
            case Started():
                self.operations[event.command.action.guest] = event
            case Finished():
                self._finish(event)
            case Told():
                self.untold.pop(event.outcome, None)
            case Epoch():
                self.epoch = max(self.epoch, event.epoch)

    def _finish(self, event: Finished) -> None:
        outcome = event.outcome
        operation = self.operations.get(outcome.guest)
        if operation is not None and operation.command.id == outcome.command:
            del self.operations[outcome.guest]
        # A lease's end is told in the name of the command that set it; that command's own outcome stays known.
        self._outcomes.setdefault(outcome.command, event)
        self.untold[outcome.id] = outcome

    def outcome(self, command: str) -> Outcome | None:
        """Return the outcome of a command that was here before, None where it is new."""
        found = self._outcomes.get(command)
        return found.outcome if found is not None else None

    def compact(self, now_ns: int) -> None:
        """Write only what still matters, when the file has grown long; raises StateError."""
        if self._lines < _COMPACT_LINES:
            return
        self._outcomes = {k: v for k, v in self._outcomes.items() if v.not_after_ns + REMEMBER_NS > now_ns}
        temporary = self._path.with_suffix(".new")
        events = list(self._events())
        try:
            with temporary.open("wb") as file:
                file.writelines(map(_encode, events))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
            self.close()
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise StateError(f"journal {self._path}: {error}") from error
        self._lines = len(events)

    def _events(self) -> Iterator[Event]:
        yield Epoch(self.epoch)
        yield from self.leases.values()
        told = set()
        for finished in self._outcomes.values():
            yield finished
            told.add(finished.outcome.id)
            if finished.outcome.id not in self.untold:
                yield Told(finished.outcome.id)
        for outcome in self.untold.values():
            if outcome.id not in told:
                yield Finished(outcome, outcome.at_ns)
        yield from self.operations.values()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _encode(event: Event) -> bytes:
    text = msgspec.json.encode(event)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Event | None:
    checksum, _, text = line.partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    try:
        return msgspec.json.decode(text, type=Event)  # type: ignore[no-any-return]  # a union is no `type[T]` to mypy
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
