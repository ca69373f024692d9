"""The agent's journal: leases, commands, operations and outcomes in an append-only file, written before the change.

One line is one transaction: eight hex digits of CRC-32, a blank, a JSON list of entries. An append is on disk (fsync)
before it counts. Damage at the end is a torn write and is cut; damage elsewhere is set aside in a copy, and what is
readable is used. Memory is the truth while the process lives: after a failed write the whole file is made anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec
import structlog

from virtpilot.actuators.ledger import (
    VERSION,
    Entry,
    Lease,
    Ledger,
    Opened,
    Operation,
    OutcomePublished,
)
from virtpilot.errors import StateError
from virtpilot.model import Outcome

log = structlog.get_logger(__name__)

COMPACT_BYTES: Final = 256 * 1024
_CRC_DIGITS: Final = 8
_GROWTH: Final = 4
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[Entry]).decode


class Parsed(msgspec.Struct, frozen=True):
    """A journal's text: its entries, the bytes before the torn tail, the torn bytes, damaged lines before them."""

    entries: list[Entry]
    good_bytes: int
    torn_bytes: int
    damaged: int


def line(entries: Iterable[Entry]) -> bytes:
    """Return one transaction as it stands in the file."""
    body = _encode(list(entries))
    return b"%08x " % crc32(body) + body + b"\n"


def parse(raw: bytes) -> Parsed:
    """Read a journal's bytes, whatever they are; never raises."""
    entries: list[Entry] = []
    good = offset = 0
    bad_before_good = bad = 0
    for text in raw.splitlines(keepends=True):
        offset += len(text)
        found = _transaction(text)
        if found is None:
            bad += 1
            continue
        entries += found
        good, bad_before_good = offset, bad
    return Parsed(entries, good, len(raw) - good, bad_before_good)


def _transaction(text: bytes) -> list[Entry] | None:
    digits, body = text[:_CRC_DIGITS], text[_CRC_DIGITS + 1 : -1]
    if text != digits + b" " + body + b"\n" or digits != b"%08x" % crc32(body):
        return None
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Journal:
    """A journal file, for one process at a time; raises StateError where it cannot be read or is in use."""

    def __init__(self, path: Path, *, compact_bytes: int = COMPACT_BYTES) -> None:
        self.path = path
        self.torn_bytes = 0
        self.damaged = 0
        self._compact_bytes = compact_bytes
        self._ledger = Ledger()
        self._file = -1
        self._size = 0
        self._compacted = 0
        self._stale = False
        try:
            self._unlock = weakref.finalize(self, os.close, _lock(path.with_name(path.name + ".lock")))
        except OSError as error:
            raise _state_error(path, error) from error
        try:
            self._load()
        except OSError as error:
            self._unlock()
            raise _state_error(path, error) from error
        except StateError:
            self._unlock()
            raise

    def _load(self) -> None:
        raw = self.path.read_bytes() if self.path.exists() else b""
        parsed = parse(raw)
        _check(self.path, raw, parsed)
        self.torn_bytes, self.damaged = parsed.torn_bytes, parsed.damaged
        self._ledger.apply(parsed.entries)
        if self.torn_bytes:
            log.warning("journal had a torn end, cut off", path=str(self.path), torn_bytes=self.torn_bytes)
        if self.damaged:
            aside = self.path.with_name(self.path.name + ".damaged")
            shutil.copyfile(self.path, aside)
            log.error("journal was damaged", path=str(self.path), lines=self.damaged, copy=str(aside))
        try:
            self._rewrite(self._ledger)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # All that it says is known: leases are kept, and what cannot be written down first is not done.
            self._stale = True
            log.error("journal cannot be written: no command is executed", path=str(self.path), error=str(error))

    @property
    def epoch(self) -> int:
        """The newest epoch of any command so far."""
        return self._ledger.epoch

    @property
    def stale(self) -> bool:
        """Whether something in memory is not on disk yet."""
        return self._stale

    def seen(self, command: str) -> bool:
        """Tell whether a command was taken up before."""
        return command in self._ledger.seen

    def lease(self, guest: str, knob: str) -> Lease | None:
        """Return the lease on a knob, None where there is none."""
        return self._ledger.leases.get((guest, knob))

    def leases(self) -> Sequence[Lease]:
        """Return all leases."""
        return list(self._ledger.leases.values())

    def operations(self) -> Sequence[Operation]:
        """Return the long operations in flight."""
        return list(self._ledger.operations.values())

    def outcomes(self, command: str) -> list[Outcome]:
        """Return what is known to have become of a command."""
        return [kept.outcome for kept in self._ledger.outcomes.values() if kept.outcome.command == command]

    def unpublished(self) -> list[Outcome]:
        """Return the outcomes that the broker is not known to have, oldest first."""
        return [kept.outcome for kept in self._ledger.outcomes.values() if not kept.published]

    def published(self, outcome_id: str) -> None:
        """Note that the broker has an outcome; losing this note only means to publish it again."""
        self._note([OutcomePublished(outcome_id)], sync=False)

    def republish(self, outcomes: Iterable[Outcome]) -> None:
        """Let known outcomes be published once more."""
        for outcome in outcomes:
            self._ledger.unpublish(outcome.id)

    def commit(self, *entries: Entry) -> None:
        """Write entries that must be on disk before something is done; raises StateError, then nothing is changed."""
        try:
            self._write(entries, sync=True)
        except OSError as error:
            raise _state_error(self.path, error) from error

    def note(self, *entries: Entry) -> None:
        """Keep entries on what has been done already: in memory at once, on disk as soon as it takes them."""
        self._note(entries, sync=True)

    def _note(self, entries: Sequence[Entry], *, sync: bool) -> None:
        try:
            self._write(entries, sync=sync)
        except OSError as error:
            self._ledger.apply(entries)
            log.error("journal cannot be written, kept in memory", path=str(self.path), error=str(error))

    def retry(self) -> None:
        """Try again to write what an earlier note could not."""
        if self._stale:
            self._note((), sync=True)

    def prune(self, now_ns: int) -> None:
        """Forget what is past its time; the file shrinks when it is next made anew."""
        self._ledger.prune(now_ns)

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self.retry()
        self._close_file()
        self._unlock()

    def _write(self, entries: Sequence[Entry], *, sync: bool) -> None:
        if self._stale:
            candidate = self._ledger.copy()
            candidate.apply(entries)
            self._rewrite(candidate)
            self._ledger = candidate
            return
        self._append(line(entries), sync=sync)
        self._ledger.apply(entries)
        if self._size > max(self._compact_bytes, _GROWTH * self._compacted):
            self._compact()

    def _append(self, text: bytes, *, sync: bool) -> None:
        try:
            _write_all(self._file, text)
            if sync:
                os.fsync(self._file)
        except OSError:
            # What reached the disk is not known: cut what can be cut, and make the file anew next time.
            self._stale = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(text)

    def _compact(self) -> None:
        try:
            self._rewrite(self._ledger)
        except OSError as error:
            # The long file still does: try again when it has grown as much once more.
            self._compacted = self._size
            log.warning("journal could not be compacted", path=str(self.path), error=str(error))

    def _rewrite(self, ledger: Ledger) -> None:
        """Make the file anew with a ledger's content; the old one stays until the new one is whole and on disk."""
        fresh = self.path.with_name(self.path.name + ".new")
        text = b"".join(line([entry]) for entry in ledger.entries())
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, text)
            os.fsync(descriptor)
            fresh.rename(self.path)
            _sync_folder(self.path.parent)
        except OSError:
            os.close(descriptor)
            # Once renamed, the open file is no longer the one that a restart would read.
            self._stale = self._stale or not fresh.exists()
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        self._close_file()
        self._file = descriptor
        self._closer = weakref.finalize(self, os.close, descriptor)
        self._size = self._compacted = len(text)
        self._stale = False

    def _close_file(self) -> None:
        if self._file >= 0:
            self._closer()
            self._file = -1


def _state_error(path: Path, error: OSError) -> StateError:
    return StateError(f"journal {path}: {error.strerror or error}")


def _check(path: Path, raw: bytes, parsed: Parsed) -> None:
    versions = [entry.version for entry in parsed.entries if isinstance(entry, Opened)]
    if raw and not versions:
        raise StateError(f"journal {path}: not a journal of virtpilot, or damaged throughout; left as it is")
    if any(version > VERSION for version in versions):
        raise StateError(f"journal {path}: written by a newer virtpilot (version {max(versions)}); left as it is")


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StateError(f"journal {path.with_suffix('')}: another agent uses it") from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_all(descriptor: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
