"""A spool's segment file: entries framed with their length and a CRC-32, read up to its end or to what is not whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

MAX_ENTRY_BYTES: Final = 1 << 24
SUFFIX: Final = ".spool"

_FRAME: Final = struct.Struct("<II")  # length of the body, CRC-32 of the body
_BODY: Final = struct.Struct("<QqH")  # sequence, time in ns, length of the boot id


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


def frame(boot: str, seq: int, time_ns: int, payload: bytes) -> bytes:
    """Return an entry as it lies in a segment; raises ValueError where it is too large."""
    written = boot.encode()
    body = _BODY.pack(seq, time_ns, len(written)) + written + payload
    if len(body) > MAX_ENTRY_BYTES:
        raise ValueError(f"an entry of {len(body)} bytes: {MAX_ENTRY_BYTES} at most")
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def segments(folder: Path) -> dict[int, Path]:
    """Return the segment files of a folder by their number, oldest first; other files are none."""
    found = {int(path.stem): path for path in folder.glob(f"*{SUFFIX}") if path.stem.isascii() and path.stem.isdigit()}
    return dict(sorted(found.items()))


def entries(path: Path, segment: int) -> Iterator[tuple[Entry, int]]:
    """Yield a segment's entries, each with the place behind it; ends where the file does, or its first torn entry."""
    at = 0
    for body in _bodies(path):
        entry = _entry(body, segment, at + _FRAME.size)
        if entry is None:
            return
        at += _FRAME.size + len(body)
        yield entry, at


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
