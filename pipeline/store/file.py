"""The file store: append-only segments of line protocol, each message once by its id, also after a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from virtpilot.errors import StoreUnavailable

log = structlog.get_logger(__name__)

_MARK: Final = b"# virtpilot "
_END: Final = b"# end\n"
_SEGMENT_BYTES: Final = 64 * 1024 * 1024


class FileStore:
    """For the demo, tests and replay. A message is a comment with its id, its lines, and an end mark."""

    def __init__(self, folder: Path) -> None:
        self.samples = 0
        self._folder = folder
        self._known: set[str] = set()
        self._durable: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self.segments():
                self._index(path)
            self._number = max((int(path.stem) for path in self.segments()), default=0) + 1
            self._file: BinaryIO = self._path().open("ab")
        except OSError as error:
            raise StoreUnavailable(f"file store {folder}: {error}") from error

    def segments(self) -> list[Path]:
        """Return the segment files, oldest first."""
        return sorted(path for path in self._folder.glob("*.lp") if path.stem.isdigit())

    def _path(self) -> Path:
        return self._folder / f"{self._number:08d}.lp"

    def _index(self, path: Path) -> None:
        """Learn the whole messages of a segment; a torn one at its end has no end mark and does not count."""
        message_id, lines = "", 0
        with path.open("rb") as file:
            for line in file:
                if line.startswith(_MARK) and line.endswith(b"\n"):
                    message_id, lines = line[len(_MARK) :].decode("utf-8", "replace").strip(), 0
                elif line == _END and message_id:
                    self._known.add(message_id)
                    self.samples += lines
                    message_id = ""
                elif line.strip():
                    lines += 1

    def write(self, message_id: str, lines: bytes) -> None:
        """Append a message and put it on disk; one that is here already is left out. Raises StoreUnavailable."""
        if message_id in self._known:
            self._durable.append(message_id)
            return
        body = lines if lines.endswith(b"\n") else lines + b"\n"
        try:
            if self._file.tell() > _SEGMENT_BYTES:
                self._file.close()
                self._number += 1
                self._file = self._path().open("ab")
            start = self._file.tell()
            try:
                self._file.write(_MARK + message_id.encode() + b"\n" + body + _END)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(start)
                raise
        except OSError as error:
            raise StoreUnavailable(f"file store {self._folder}: {error}") from error
        self._known.add(message_id)
        self._durable.append(message_id)
        self.samples += sum(1 for line in body.split(b"\n") if line.strip())

    def durable(self, now_ns: int) -> Sequence[str]:  # noqa: ARG002 - on disk at once, whatever the time
        """Return what was written since the last call."""
        found, self._durable = self._durable, []
        return found

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield (message id, lines) of every whole message, in order of writing."""
        for path in self.segments():
            message_id = ""
            lines: list[bytes] = []
            with path.open("rb") as file:
                for line in file:
                    if line.startswith(_MARK):
                        message_id, lines = line[len(_MARK) :].decode("utf-8", "replace").strip(), []
                    elif line == _END and message_id:
                        yield message_id, b"".join(lines)
                        message_id = ""
                    else:
                        lines.append(line)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
