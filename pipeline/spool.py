"""What an agent has measured and nobody has reported stored yet: on disk, in order, bounded, through any crash.

A folder of segment files; each entry is framed with its length and a CRC-32. Payloads stay on disk, the index is in
memory. A segment goes when all its entries are reported, or as the oldest when there is no more room.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from virtpilot.errors import StateError
from virtpilot.pipeline.sequences import SequenceSet

MAX_ENTRY_BYTES: Final = 1 << 24

_FRAME: Final = struct.Struct("<II")  # length of the body, CRC-32 of the body
_BODY: Final = struct.Struct("<QqH")  # sequence, time in ns, length of the boot id
_SUFFIX: Final = ".spool"
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


class Entry(msgspec.Struct, frozen=True):
    """One spooled message: its number in its boot, when it was spooled, and where its payload lies."""

    boot: str
    seq: int
    time_ns: int
    segment: int
    offset: int
    length: int

    @property
    def key(self) -> tuple[str, int]:
        """What identifies the message for its host."""
        return (self.boot, self.seq)


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
        self._segment_bytes = min(max(self.options.max_bytes // 16, 1 << 14), 4 << 20)
        self._entries: OrderedDict[tuple[str, int], Entry] = OrderedDict()
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._file: int | None = None
        self._last_seq = 0
        with _mapped("open the spool"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in sorted(folder.glob(f"*{_SUFFIX}")):
                self._load(path)
        self._next_segment = max(self._segments, default=0) + 1
        self._drop_empty()

    def __len__(self) -> int:
        """Return how many messages are kept."""
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments.values())

    def append(self, payload: bytes, time_ns: int = 0) -> Entry:
        """Put a message on disk under the next sequence number of this boot; raises StateError."""
        seq = self._last_seq + 1
        boot = self._boot.encode()
        body = _BODY.pack(seq, time_ns, len(boot)) + boot + payload
        if len(body) > MAX_ENTRY_BYTES:
            raise StateError(f"an entry of {len(body)} bytes: {MAX_ENTRY_BYTES} at most")
        frame = _FRAME.pack(len(body), zlib.crc32(body)) + body
        self._make_room(len(frame))
        with _mapped("write the spool"):
            number, segment, file = self._current()
            try:
                _write(file, frame, self.options.fsync)
            except OSError:
                self._undo(file, segment)
                raise
        self._last_seq = seq
        segment.size += len(frame)
        entry = Entry(self._boot, seq, time_ns, number, segment.size - len(payload), len(payload))
        self._index(entry, segment)
        return entry

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
            if segment.size < self._segment_bytes:
                return number, segment, self._file
            self.close()
        number = self._next_segment
        segment = _Segment(self._folder / f"{number:012d}{_SUFFIX}")
        self._file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._next_segment += 1
        self._segments[number] = segment
        if self.options.fsync:
            _sync_folder(self._folder)
        return number, segment, self._file

    def _undo(self, file: int, segment: _Segment) -> None:
        """Cut off what a failed write left; where even that fails, leave the segment and begin another."""
        try:
            os.ftruncate(file, segment.size)
        except OSError as error:
            log.warning("spool segment left torn", segment=str(segment.path), error=str(error))
            self.close()

    def _make_room(self, coming: int) -> None:
        size = self.size
        while self._segments and size + coming > self.options.max_bytes:
            number, segment = next(iter(self._segments.items()))
            lost = [entry for entry in self._entries.values() if entry.segment == number]
            for entry in lost:
                self._forget(entry)
            self.dropped += len(lost)
            size -= segment.size
            self._remove(number)
            log.warning("spool is full: the oldest messages are gone", messages=len(lost), dropped=self.dropped)

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

    def _load(self, path: Path) -> None:
        """Read a segment's entries into the index and cut off a torn tail."""
        if not (path.stem.isascii() and path.stem.isdigit()):
            log.warning("not a spool segment", path=str(path))
            return
        number = int(path.stem)
        segment = self._segments[number] = _Segment(path)
        for body in _bodies(path):
            entry = _entry(body, number, segment.size + _FRAME.size)
            if entry is None:
                break
            segment.size += _FRAME.size + len(body)
            self._index(entry, segment)
            if entry.boot == self._boot:
                self._last_seq = max(self._last_seq, entry.seq)
        lost_bytes = path.stat().st_size - segment.size
        if lost_bytes:
            self.torn += 1
            log.warning("spool segment had a torn tail", path=str(path), lost_bytes=lost_bytes)
            os.truncate(path, segment.size)


def _bodies(path: Path) -> Iterator[bytes]:
    """Yield the bodies of a segment's frames up to its end or to the first that is not whole."""
    with path.open("rb") as file:
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, crc = _FRAME.unpack(head)
            if not _BODY.size <= length <= MAX_ENTRY_BYTES:
                return
            body = file.read(length)
            if len(body) != length or zlib.crc32(body) != crc:
                return
            yield body


def _entry(body: bytes, segment: int, at: int) -> Entry | None:
    """Return the index entry of a frame's body that begins at `at`, None where it is no entry."""
    seq, time_ns, boot_length = _BODY.unpack_from(body)
    head = _BODY.size + boot_length
    try:
        boot = body[_BODY.size : head].decode()
    except UnicodeDecodeError:
        return None
    return Entry(boot, seq, time_ns, segment, at + head, len(body) - head) if head <= len(body) else None


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
