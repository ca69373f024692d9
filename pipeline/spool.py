"""The agent's spool: messages on disk until a writer has reported them stored.

Segment files of framed entries (length, CRC-32, header, payload). A torn tail is cut at opening. Bounded: the oldest
messages go first.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from virtpilot.errors import StateError

log = structlog.get_logger(__name__)

_FRAME: Final = struct.Struct(">II")
_SEGMENT_BYTES: Final = 4 * 1024 * 1024


class SpoolOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much an agent keeps while nobody takes it."""

    max_bytes: Annotated[int, Meta(description="Bytes on disk at most; the oldest messages go first.", ge=1 << 20)] = (
        512 * 1024 * 1024
    )
    fsync: Annotated[
        bool, Meta(description="Put each message on disk at once: survives a power cut, not only a crash.")
    ] = True
    resend_after_s: Annotated[
        float, Meta(description="A message that is not reported stored for so long is sent again.", gt=0)
    ] = 60.0


class Entry(msgspec.Struct, frozen=True):
    """One message in the spool, known by boot and sequence."""

    boot: str
    sequence: int
    at_ns: int
    payload: bytes


class _Place(msgspec.Struct):
    segment: int
    offset: int
    length: int


class _Header(msgspec.Struct, array_like=True):
    boot: str
    sequence: int
    at_ns: int


class Spool:
    """Entries of this boot and of earlier ones, in order; payloads stay on disk. Raises StateError."""

    def __init__(self, folder: Path, boot: str, options: SpoolOptions) -> None:
        self.dropped = 0
        self.torn = 0
        self._folder = folder
        self._boot = boot
        self._options = options
        self._places: dict[tuple[str, int], _Place] = {}
        self._alive: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._sequence = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number in sorted(self._numbers()):
                self._read(number)
            self._current = max(self._bytes, default=0) + 1
            self._file = self._path(self._current).open("ab", buffering=0)
        except OSError as error:
            raise StateError(f"spool {folder}: {error}") from error
        self._alive[self._current] = self._bytes[self._current] = 0
        self._sweep()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}.spool"

    def _numbers(self) -> Iterator[int]:
        return (int(path.stem) for path in self._folder.glob("*.spool") if path.stem.isdigit())

    def _read(self, number: int) -> None:
        raw = self._path(number).read_bytes()
        self._alive[number] = 0
        offset = 0
        while (frame := _frame(raw, offset)) is not None:
            header, length = frame
            self._places[header.boot, header.sequence] = _Place(number, offset, length)
            self._alive[number] += 1
            offset += length
        self._bytes[number] = offset
        if offset < len(raw):
            self.torn += 1
            log.warning("spool: torn tail cut off", segment=number, bytes=len(raw) - offset)
            os.truncate(self._path(number), offset)

    def __len__(self) -> int:
        """Return how many messages are kept."""
        return len(self._places)

    @property
    def bytes_used(self) -> int:
        """The bytes on disk."""
        return sum(self._bytes.values())

    def append(self, payload: bytes, now_ns: int) -> Entry:
        """Keep a payload under the next sequence number; a full disk drops the oldest. Raises StateError."""
        self._sequence += 1
        entry = Entry(self._boot, self._sequence, now_ns, payload)
        body = msgspec.json.encode(_Header(entry.boot, entry.sequence, now_ns)) + b"\n" + payload
        frame = _FRAME.pack(len(body), zlib.crc32(body)) + body
        self._make_room(len(frame))
        while True:
            try:
                self._write(frame)
                break
            except OSError as error:
                if not self._drop_oldest():
                    raise StateError(f"spool {self._folder}: {error}") from error
        self._places[entry.boot, entry.sequence] = _Place(self._current, self._bytes[self._current], len(frame))
        self._alive[self._current] += 1
        self._bytes[self._current] += len(frame)
        return entry

    def _write(self, frame: bytes) -> None:
        if self._bytes[self._current] >= _SEGMENT_BYTES:
            self._roll()
        size = self._bytes[self._current]
        try:
            if self._file.write(frame) != len(frame):
                raise OSError("short write")
            if self._options.fsync:
                os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise

    def _roll(self) -> None:
        fresh = self._path(self._current + 1).open("ab", buffering=0)
        self._file.close()
        self._file = fresh
        self._current += 1
        self._alive[self._current] = self._bytes[self._current] = 0

    def _make_room(self, more: int) -> None:
        while self.bytes_used + more > self._options.max_bytes and self._drop_oldest():
            pass

    def _drop_oldest(self) -> bool:
        """Give up the oldest segment, the present one included once it is the only one; False with nothing to drop."""
        oldest = min(self._bytes)
        if oldest == self._current:
            if self._bytes[oldest] == 0:
                return False
            self._roll()
        lost = [key for key, place in self._places.items() if place.segment == oldest]
        for key in lost:
            del self._places[key]
        self.dropped += len(lost)
        log.error("spool is full: oldest messages dropped", messages=len(lost), dropped=self.dropped)
        self._delete(oldest)
        return True

    def _delete(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        del self._bytes[number], self._alive[number]

    def pending(self) -> Iterator[tuple[str, int]]:
        """Yield (boot, sequence) of what is kept, oldest first."""
        return iter(tuple(self._places))

    def read(self, boot: str, sequence: int) -> Entry | None:
        """Return a kept message; None where it is gone, or damaged on disk."""
        place = self._places.get((boot, sequence))
        if place is None:
            return None
        try:
            with self._path(place.segment).open("rb") as file:
                file.seek(place.offset)
                raw = file.read(place.length)
        except OSError as error:
            log.error("spool: a message cannot be read", boot=boot, sequence=sequence, error=str(error))
            return None
        if _frame(raw, 0) is None:
            log.error("spool: a message is damaged", boot=boot, sequence=sequence)
            return None
        head, _, payload = raw[_FRAME.size :].partition(b"\n")
        return Entry(boot, sequence, msgspec.json.decode(head, type=_Header).at_ns, payload)

    def trim(self, boot: str, ranges: Iterable[tuple[int, int]]) -> int:
        """Let go of what is stored; return how many messages that were."""
        gone = 0
        mine = sorted(sequence for own, sequence in self._places if own == boot)
        for first, last in ranges:
            for sequence in mine:
                if first <= sequence <= last and (place := self._places.pop((boot, sequence), None)) is not None:
                    self._alive[place.segment] -= 1
                    gone += 1
        if gone:
            self._sweep()
        return gone

    def _sweep(self) -> None:
        for number in [n for n, alive in self._alive.items() if alive == 0 and n != self._current]:
            self._delete(number)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _frame(raw: bytes, offset: int) -> tuple[_Header, int] | None:
    """Return the header and length of the frame at an offset, None where there is no whole one."""
    if len(raw) < offset + _FRAME.size:
        return None
    length, checksum = _FRAME.unpack_from(raw, offset)
    body = raw[offset + _FRAME.size : offset + _FRAME.size + length]
    if len(body) < length or zlib.crc32(body) != checksum:
        return None
    try:
        return msgspec.json.decode(body.partition(b"\n")[0], type=_Header), _FRAME.size + length
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
