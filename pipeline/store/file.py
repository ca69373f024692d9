"""The file store: append-only segments of line protocol, each message once by its id, also after a restart.

Each message is preceded by a comment line `# virtpilot <message-id> <bytes> <crc-32>`, so that a segment is itself line
protocol that any tool reads, and what a crash tore is known. Nothing in a message's own lines is taken for a mark.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.lineprotocol import parse
from virtpilot.model import Sample
from virtpilot.pipeline.sequences import SequenceSet

_MARK: Final = b"# virtpilot "
_SUFFIX: Final = ".lp"
_MAX_HEADER_BYTES: Final = 4096
_MAX_MESSAGE_BYTES: Final = 1 << 26
log = structlog.get_logger(__name__)


class FileStore:
    """For the demo, tests and replay; a segment is closed once it has `segment_bytes`. Raises StoreUnavailable."""

    def __init__(self, folder: Path, segment_bytes: int = 64 << 20) -> None:
        self.samples = 0
        self.messages = 0
        self.torn = 0
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._known = _Known()
        self._durable: list[str] = []
        self._file: BinaryIO | None = None
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self.segments():
                self._learn(path)
        except OSError as error:
            raise StoreUnavailable(f"file store {folder}: {error}") from error
        self._number = max((int(path.stem) for path in self.segments()), default=0)

    def segments(self) -> list[Path]:
        """Return the segment files, oldest first."""
        return sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())

    def write(self, message_id: str, lines: bytes) -> None:
        """Append a message and put it on disk, unless it is here already."""
        self.write_all([(message_id, lines)])

    def write_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Append messages and put them on disk together; those that are here already are left out."""
        new = {message_id: _whole(lines) for message_id, lines in messages if message_id not in self._known}
        frames = [_frame(message_id, body) for message_id, body in new.items()]
        try:
            if frames:
                self._append(b"".join(frames))
        except OSError as error:
            raise StoreUnavailable(f"file store {self._folder}: {error}") from error
        for message_id, body in new.items():
            self._count(message_id, body)
        self._durable.extend(message_id for message_id, _ in messages)

    def _append(self, frames: bytes) -> None:
        if self._file is None or self._size >= self._segment_bytes:
            self.close()
            self._number += 1
            # A segment of its own for each start: what was torn stays behind.
            self._file = (self._folder / f"{self._number:08d}{_SUFFIX}").open("xb", buffering=0)
            self._size = 0
        try:
            view = memoryview(frames)
            while view:
                view = view[self._file.write(view) :]
            os.fdatasync(self._file.fileno())
        except OSError:
            self._undo(self._file)
            raise
        self._size += len(frames)

    def _undo(self, file: BinaryIO) -> None:
        try:
            file.truncate(self._size)
            file.seek(self._size)
        except OSError:
            # The next write begins another segment.
            self.close()
            raise

    def durable(self, now_ns: int) -> Sequence[str]:  # noqa: ARG002 # on disk at once, whatever the time
        """Return the ids of what was written since the last call, repeated messages too."""
        found, self._durable = self._durable, []
        return found

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield (message id, lines) of every whole message, in order of writing."""
        for path in self.segments():
            yield from messages(path)

    def samples_in_order(self) -> Iterator[Sample]:
        """Yield every sample, in order of writing; malformed lines are left out."""
        for _, lines in self.read():
            yield from parse(lines).samples

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _count(self, message_id: str, body: bytes) -> None:
        self._known.add(message_id)
        self.messages += 1
        self.samples += sum(1 for line in body.split(b"\n") if line.strip() and not line.startswith(b"#"))

    def _learn(self, path: Path) -> None:
        """Learn the whole messages of a segment and cut off what is torn behind them."""
        good = 0
        for message_id, body in messages(path):
            self._count(message_id, body)
            good += len(_frame(message_id, body))
        lost_bytes = path.stat().st_size - good
        if lost_bytes:
            self.torn += 1
            log.warning("segment had a torn tail", path=str(path), lost_bytes=lost_bytes)
            os.truncate(path, good)


class _Known:
    """The ids of stored messages: sequences of one host and boot as ranges, so that a month of them stays small."""

    def __init__(self) -> None:
        self._sequences: dict[str, SequenceSet] = {}
        self._others: set[str] = set()

    def __contains__(self, message_id: str) -> bool:
        source, _, number = message_id.rpartition("/")
        if _is_number(number):
            return source in self._sequences and int(number) in self._sequences[source]
        return message_id in self._others

    def add(self, message_id: str) -> None:
        source, _, number = message_id.rpartition("/")
        if _is_number(number):
            self._sequences.setdefault(source, SequenceSet()).add(int(number))
        else:
            self._others.add(message_id)


def _is_number(text: str) -> bool:
    """Return whether a text is a sequence number in its one canonical form."""
    return text.isascii() and text.isdigit() and len(text) < 20 and (text == "0" or text[0] != "0")


def _whole(lines: bytes) -> bytes:
    return lines if lines.endswith(b"\n") or not lines else lines + b"\n"


def _frame(message_id: str, body: bytes) -> bytes:
    written = message_id.encode()
    if not written or b" " in written or not message_id.isprintable() or len(written) > _MAX_HEADER_BYTES // 2:
        raise StoreRefused(f"{message_id[:100]!r} is no message id: printable and without spaces")
    return b"%s%s %d %08x\n%s" % (_MARK, written, len(body), _crc(written, body), body)


def _crc(message_id: bytes, body: bytes) -> int:
    """Return the check of both: a damaged id must not pass for another message's."""
    return zlib.crc32(body, zlib.crc32(message_id))


def messages(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the messages of a segment up to its end or to the first that is not whole."""
    with path.open("rb") as file:
        while (header := file.readline(_MAX_HEADER_BYTES)).startswith(_MARK) and header.endswith(b"\n"):
            parts = header[len(_MARK) : -1].split(b" ")
            if len(parts) != 3 or not parts[1].isdigit() or len(parts[1]) > 9 or int(parts[1]) > _MAX_MESSAGE_BYTES:
                return
            body = file.read(int(parts[1]))
            if len(body) != int(parts[1]) or b"%08x" % _crc(parts[0], body) != parts[2]:
                return
            yield parts[0].decode(errors="replace"), body
