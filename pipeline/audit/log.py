"""The audit log as a process writes it: append-only, continued after a restart, rotated without a break."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import structlog

from virtpilot.errors import StateError
from virtpilot.pipeline.audit.chain import (
    CURRENT,
    FIRST_BEFORE,
    HEAD,
    MAX_LINE,
    Head,
    Line,
    ends,
    files,
    opened,
    read_head,
    rotated,
    sealed,
)
from virtpilot.pipeline.state import replace_file

log = structlog.get_logger(__name__)

ROTATE_BYTES: Final = 16 * 1024 * 1024
MAX_WAITING: Final = 10_000
_SHOWN: Final = 2_000


class Waiting(msgspec.Struct, frozen=True):
    """Something that happened and is not in the file yet."""

    at_ns: int
    kind: str
    entry: dict[str, Any]


class Audit(Protocol):
    """Where what happens is written down."""

    @property
    def failures(self) -> int:
        """How often the disk did not take something."""

    def add(self, kind: str, at_ns: int, entry: object) -> None:
        """Append what happened; `entry` is anything that msgspec writes as a JSON object."""

    def sync(self) -> None:
        """Put on disk what has been written; call it now and then."""

    def close(self) -> None:
        """Put all on disk and let go."""


class NoAudit:
    """For what runs in memory alone: rule tests, replay."""

    failures = 0

    def add(self, kind: str, at_ns: int, entry: object) -> None:
        """Forget it."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class AuditLog:
    """Appends to the chain in a folder; raises StateError where that cannot be read.

    What the disk does not take waits in memory and is written when it does, the newest first lost (and counted in the
    chain) when too much waits. A line survives the end of this process at once, and the machine's after the next
    `sync`.
    """

    def __init__(self, folder: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.failures = 0
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._waiting: deque[Waiting] = deque()
        self._lost = 0
        self._syncer = ThreadPoolExecutor(1, "audit-syncer")
        self._synced = 0
        try:
            self._head, self._first, torn = _newest(folder)
            self._open()
        except OSError as error:
            raise StateError(f"the audit log in {folder} cannot be read: {error.strerror}") from error
        if torn:
            log.error("the audit log's last line was torn", folder=str(folder), bytes=len(torn))
            self.add("torn", 0, {"bytes": len(torn), "text": torn[:200].decode(errors="replace")})

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self._folder / CURRENT, flags, 0o600)
        self._size = os.fstat(self._handle).st_size

    @property
    def head(self) -> Head:
        """The newest line."""
        return self._head

    @property
    def waiting(self) -> int:
        """How many entries the disk has not taken."""
        return len(self._waiting)

    def add(self, kind: str, at_ns: int, entry: object) -> None:
        """Append what happened; `entry` is anything that msgspec writes as a JSON object."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self._waiting.append(Waiting(at_ns, kind, msgspec.to_builtins(entry)))
        self._write()

    def _write(self) -> None:
        """Write what waits, in order; what the disk does not take is tried again with the next call."""
        try:
            while self._waiting:
                self._put(self._waiting[0])
                self._waiting.popleft()
            if self._lost:
                self._put(Waiting(0, "lost", {"entries": self._lost}))
                self._lost = 0
        except OSError as error:
            self.failures += 1
            if self.failures == 1 or not self.failures % 1000:
                log.error("the audit log cannot be written", folder=str(self._folder), error=error.strerror)

    def _put(self, what: Waiting) -> None:
        if self._size >= self._rotate_bytes:
            self._rotate()
        raw, digest = self._sealed(what.at_ns, what.kind, what.entry)
        if len(raw) > MAX_LINE:
            short = {"bytes": len(raw), "sha256": digest, "text": raw[:_SHOWN].decode(errors="replace")}
            raw, digest = self._sealed(what.at_ns, what.kind, {"too_long": short})
        try:
            left = memoryview(raw)
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise
        self._size += len(raw)
        self._head = Head(self._head.n + 1, digest)
        self._first = self._first or self._head.n

    def _sealed(self, at_ns: int, kind: str, entry: dict[str, Any]) -> tuple[bytes, str]:
        return sealed(Line(self._head.n + 1, self._head.hash, at_ns, kind, entry))

    def _rotate(self) -> None:
        os.fdatasync(self._handle)
        # Where the new file could not be opened it is tried again, and the full one has its name already.
        with contextlib.suppress(FileNotFoundError):
            (self._folder / CURRENT).rename(rotated(self._folder, self._first))
        former = self._handle
        self._open()
        self._syncer.submit(os.close, former)
        self._first = 0

    def sync(self) -> None:
        """Put on disk what has been written, in a thread; call it now and then."""
        if self._waiting or self._lost:
            self._write()
        if self._head.n > self._synced:
            self._synced = self._head.n
            self._syncer.submit(self._sync, self._handle, self._head)

    def _sync(self, handle: int, head: Head) -> None:
        try:
            os.fdatasync(handle)
            replace_file(self._folder / HEAD, msgspec.json.encode(head))
        except OSError as error:
            self._synced = 0  # tried again
            log.error("the audit log is not known to be on disk", folder=str(self._folder), error=error.strerror)

    def close(self) -> None:
        """Put all on disk and let go."""
        self.sync()
        self._syncer.shutdown()
        os.close(self._handle)


def _newest(folder: Path) -> tuple[Head, int, bytes]:
    """Return the newest line, the first line of its file, and the torn bytes at the end, which are cut off.

    A chain that does not end well goes on after its head as known, so that verifying it shows the break.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    chain = files(folder)
    torn = _cut(chain[-1]) if chain and chain[-1].name == CURRENT else b""
    for path in reversed(chain):
        oldest, newest = ends(path)
        if newest:
            head, begins = _head_of(oldest, newest, folder)
            return head, (begins if path.name == CURRENT else 0), torn
    return _known(folder) or Head(), 0, torn


def _head_of(oldest: bytes, newest: bytes, folder: Path) -> tuple[Head, int]:
    first = 0
    with contextlib.suppress(ValueError):
        first = opened(oldest)[0].n
    try:
        line, digest = opened(newest)
        return Head(line.n, digest), first or line.n
    except ValueError as error:
        known = _known(folder) or Head(first, FIRST_BEFORE)
        log.error("the audit log's last line is not as it was written", folder=str(folder), error=str(error))
        return known, first or known.n


def _known(folder: Path) -> Head | None:
    try:
        return read_head(folder)
    except ValueError as error:
        log.error("the audit log's head is not readable", folder=str(folder), error=str(error))
        return None


def _cut(path: Path) -> bytes:
    """Cut a torn last line off a file, and return it: it was never told to anybody."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**20))
        tail = file.read()
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            file.truncate(size - len(torn))
    return torn
