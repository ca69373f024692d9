"""What an agent has measured and nobody has reported stored yet: on disk, in order, bounded, through any crash.

A folder of segment files; payloads stay on disk, the index is in memory. A segment goes when all its entries are
reported, or as the oldest when there is no more room: neither by the option nor on the disk.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from virtpilot.errors import StateError
from virtpilot.pipeline.segments import SUFFIX, Entry, entries, frame, segments
from virtpilot.pipeline.sequences import SequenceSet

# What a disk says that has no room: full, over quota, or the file as large as this process may make it.
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Messages are lost no more once so much of what was full is free again: the next outage is another one.
_ROOM_AGAIN: Final = 0.8
log = structlog.get_logger(__name__)


class SpoolOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much an agent keeps while nobody takes it."""

    max_bytes: Annotated[int, Meta(description="Bytes on disk at most; the oldest messages go first.", ge=1 << 16)] = (
        512 * 1024 * 1024
    )
    fsync: Annotated[
        bool, Meta(description="Put each message on disk at once: survives a power cut, not only a crash.")
    ] = True
    resend_after_s: Annotated[
        float,
        Meta(
            description="A message that is not reported stored for so long is sent again; over the writers' hold_s.",
            gt=0,
        ),
    ] = 30.0


class _Segment:
    """One file: how long it is and how many of its entries are still wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.wanted = 0


class Spool:
    """The spool in `folder` for messages of this `boot`, an id that no earlier start has had; raises StateError."""

    def __init__(self, folder: Path, boot: str, options: SpoolOptions | None = None) -> None:
        self.options = options or SpoolOptions()
        self.dropped = 0
        self.torn = 0
        self._folder = folder
        self._boot = boot
        self._entries: OrderedDict[tuple[str, int], Entry] = OrderedDict()
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._file: int | None = None
        self._last_seq = 0
        self._full_bytes = 0  # how much there was when messages began to go, 0 while none do
        self._lost = 0
        with _mapped("open the spool"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number, path in segments(folder).items():
                self._load(number, path)
        self._next_segment = max(self._segments, default=0) + 1
        self._drop_empty()

    def __len__(self) -> int:
        """Return how many messages are kept."""
        return len(self._entries)

    def __contains__(self, key: tuple[str, int]) -> bool:
        """Return whether a message, by boot and sequence, is kept."""
        return key in self._entries

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments.values())

    @property
    def full(self) -> bool:
        """Whether the oldest messages go for want of room, until reports have made some."""
        return self._full_bytes > 0

    def entry(self, key: tuple[str, int]) -> Entry | None:
        """Return where a message lies, None where it is kept no more."""
        return self._entries.get(key)

    def append(self, payload: bytes, time_ns: int = 0) -> Entry:
        """Put a message on disk under the next sequence number of this boot; raises StateError."""
        seq = self._last_seq + 1
        try:
            framed = frame(self._boot, seq, time_ns, payload)
        except ValueError as error:
            raise StateError(str(error)) from error
        while self._segments and self.size + len(framed) > self.options.max_bytes:
            self._drop_oldest("max_bytes")
        with _mapped("write the spool"):
            number, segment = self._write(framed)
        self._last_seq = seq
        segment.size += len(framed)
        entry = Entry(self._boot, seq, time_ns, number, segment.size - len(payload), len(payload))
        self._index(entry, segment)
        return entry

    def _write(self, framed: bytes) -> tuple[int, _Segment]:
        """Write behind all others; where the disk has no room, the oldest messages make it, if they can."""
        while True:
            try:
                number, segment, file = self._current()
                try:
                    _write(file, framed, self.options.fsync)
                except OSError:
                    self._undo(file, segment)
                    raise
                return number, segment
            except OSError as error:
                if error.errno not in _NO_ROOM or self.size < len(framed):
                    raise
                self._drop_oldest(os.strerror(error.errno))

    def pending(self) -> Iterator[Entry]:
        """Yield what is not reported yet, oldest first; it may be trimmed meanwhile."""
        for entry in list(self._entries.values()):
            if entry.key in self._entries:
                yield entry

    def payload(self, entry: Entry) -> bytes:
        """Return an entry's payload; raises StateError, also where it is not there any more."""
        segment = self._segments.get(entry.segment)
        if segment is None:
            raise StateError(f"entry {entry.boot}/{entry.seq} has left the spool")
        with _mapped("read the spool"), segment.path.open("rb") as file:
            file.seek(entry.offset)
            payload = file.read(entry.length)
        if len(payload) != entry.length:
            raise StateError(f"{segment.path} is shorter than it was")
        return payload

    def trim(self, boot: str, ranges: Iterable[tuple[int, int]]) -> list[Entry]:
        """Forget what is stored safely, inclusive ranges of sequences of one boot, and return it."""
        stored = SequenceSet(ranges)
        if stored.count <= len(self._entries):
            keys = ((boot, seq) for first, last in stored.ranges() for seq in range(first, last + 1))
            gone = [self._entries[key] for key in keys if key in self._entries]
        else:
            gone = [entry for (of, seq), entry in self._entries.items() if of == boot and seq in stored]
        for entry in gone:
            self._forget(entry)
        if gone:
            self._drop_empty()
            self._look_for_room()
        return gone

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _index(self, entry: Entry, segment: _Segment) -> None:
        if entry.key in self._entries:
            self._forget(self._entries[entry.key])
        self._entries[entry.key] = entry
        segment.wanted += 1

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._segments[entry.segment].wanted -= 1

    def _current(self) -> tuple[int, _Segment, int]:
        """Return number, segment and file to append to."""
        if self._file is not None:
            number, segment = next(reversed(self._segments.items()))
            if segment.size < self._segment_bytes():
                return number, segment, self._file
            self.close()
        number = self._next_segment
        segment = _Segment(self._folder / f"{number:012d}{SUFFIX}")
        self._file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._next_segment += 1
        self._segments[number] = segment
        if self.options.fsync:
            _sync_folder(self._folder)
        return number, segment, self._file

    def _segment_bytes(self) -> int:
        """Return when a segment is large enough: of a sixteenth of the room, so that losing one costs little."""
        disk = os.statvfs(self._folder)
        room = min(self.options.max_bytes, self.size + disk.f_bavail * disk.f_frsize)
        return min(max(room // 16, 1 << 14), 4 << 20)

    def _undo(self, file: int, segment: _Segment) -> None:
        """Cut off what a failed write left; where even that fails, leave the segment and begin another."""
        try:
            os.ftruncate(file, segment.size)
        except OSError as error:
            log.warning("spool segment left torn", segment=str(segment.path), error=str(error))
            self.close()

    def _drop_oldest(self, limit: str) -> None:
        """Lose the oldest segment with what is in it: counted, and told once until there is room again."""
        number = next(iter(self._segments))
        size = self.size
        # The index is in the order of the segments.
        lost = list(takewhile(lambda entry: entry.segment == number, self._entries.values()))
        for entry in lost:
            self._forget(entry)
        self._remove(number)
        self.dropped += len(lost)
        self._lost += len(lost)
        if lost and not self._full_bytes:
            self._full_bytes = size
            log.error("spool is full: the oldest messages go", spool=str(self._folder), bytes=size, limit=limit)

    def _look_for_room(self) -> None:
        if self._full_bytes and (not self._entries or self.size < self._full_bytes * _ROOM_AGAIN):
            log.info("spool has room again", spool=str(self._folder), messages_lost=self._lost)
            self._full_bytes = self._lost = 0

    def _drop_empty(self) -> None:
        for number in [number for number, segment in self._segments.items() if not segment.wanted]:
            if self._file is not None and number == next(reversed(self._segments)):
                self._rewind(self._file, self._segments[number])
            else:
                self._remove(number)

    def _rewind(self, file: int, segment: _Segment) -> None:
        """Begin the current segment again: in quiet times cheaper than a new file for each message."""
        try:
            os.ftruncate(file, 0)
            segment.size = 0
        except OSError as error:
            log.warning("spool segment cannot be emptied", segment=str(segment.path), error=str(error))

    def _remove(self, number: int) -> None:
        if number == next(reversed(self._segments)):
            self.close()
        segment = self._segments.pop(number)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("spool segment cannot be removed", segment=str(segment.path), error=str(error))

    def _load(self, number: int, path: Path) -> None:
        """Read a segment's entries into the index and cut off a torn tail."""
        segment = self._segments[number] = _Segment(path)
        for entry, end in entries(path, number):
            segment.size = end
            self._index(entry, segment)
            if entry.boot == self._boot:
                self._last_seq = max(self._last_seq, entry.seq)
        lost_bytes = path.stat().st_size - segment.size
        if lost_bytes:
            self.torn += 1
            log.warning("spool segment had a torn tail", path=str(path), lost_bytes=lost_bytes)
            os.truncate(path, segment.size)


def _write(file: int, frame: bytes, fsync: bool) -> None:
    view = memoryview(frame)
    while view:
        view = view[os.write(file, view) :]
    if fsync:
        os.fdatasync(file)


def _sync_folder(folder: Path) -> None:
    """Make a new file's name outlast a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"cannot {what}: {error}") from error
