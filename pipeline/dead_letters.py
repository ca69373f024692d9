"""Lines that the store will never take: found by halving, and kept in a file with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from virtpilot.errors import StateError, StoreRefused
from virtpilot.lineprotocol import parse

_NAME: Final = "dead-letters.jsonl"
_MAX_PROBES: Final = 256
_TOGETHER: Final = StoreRefused("among lines that were refused together")
_NO_TIME: Final = "expected a timestamp"
_MAX_LINE_CHARS: Final = 65_536
_MAX_FILE_BYTES: Final = 64 << 20
log = structlog.get_logger(__name__)


class Sifted(msgspec.Struct, frozen=True):
    """The lines that the store takes, and those that it does not with the reason."""

    good: bytes
    bad: list[tuple[bytes, str]]


def sift(lines: bytes, refusal: Callable[[bytes], StoreRefused | None]) -> Sifted:
    """Part the lines that the store takes from those it refuses; `refusal` writes some and returns why not.

    What is malformed is found by reading, then what the store names, the rest by halving, with 256 tries at most: what
    is then still in doubt counts as refused. A line without a time is for the store to judge.
    """
    malformed = {line.number: line.reason for line in parse(lines).bad if not line.reason.endswith(_NO_TIME)}
    rows = [(number, row) for number, row in enumerate(lines.split(b"\n"), 1) if row.strip()]
    bad = [(number, row, malformed[number]) for number, row in rows if number in malformed]
    good: list[tuple[int, bytes]] = []
    doubtful = [[(number, row) for number, row in rows if number not in malformed]]
    probes = 0
    while doubtful:
        part = doubtful.pop()
        probes += 1
        refused = refusal(_joined(part)) if probes <= _MAX_PROBES else _TOGETHER
        if refused is None:
            good += part
        elif named := [(number, row, refused.named[row]) for number, row in part if row in refused.named]:
            bad += named
            if rest := [(number, row) for number, row in part if row not in refused.named]:
                doubtful.append(rest)
        elif len(part) <= 1 or probes > _MAX_PROBES:
            bad += [(number, row, str(refused)) for number, row in part]
        else:
            half = len(part) // 2
            doubtful += [part[half:], part[:half]]
    return Sifted(_joined(sorted(good)), [(row, reason) for _, row, reason in sorted(bad)])


def _joined(rows: list[tuple[int, bytes]]) -> bytes:
    return b"".join([row + b"\n" for _, row in rows])


class DeadLetter(msgspec.Struct, frozen=True):
    """A line that the store refused, when, of which topic, and why."""

    at_ns: int
    topic: str
    reason: str
    line: str


def letter_files(folder: Path) -> list[Path]:
    """Return the dead letters' files in a folder, the older one first."""
    return [path for path in (folder / f"{_NAME}.1", folder / _NAME) if path.exists()]


def read_letters(path: Path) -> tuple[list[DeadLetter], int]:
    """Return a file's dead letters, and how many of its lines are none; raises StateError."""
    letters, torn = [], 0
    try:
        rows = path.read_bytes().splitlines()
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    for row in rows:
        try:
            letters.append(msgspec.json.decode(row, type=DeadLetter))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            torn += 1
    return letters, torn


def write_letters(path: Path, letters: list[DeadLetter]) -> None:
    """Put other dead letters in a file's place, whole or not at all, none: the file goes; raises StateError."""
    try:
        if not letters:
            path.unlink(missing_ok=True)
            return
        beside = path.with_name(f".{path.name}.new")
        with beside.open("wb") as file:
            file.write(msgspec.json.Encoder().encode_lines(letters))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error


class DeadLetters:
    """A file of refused lines, JSON one a line; at 64 MiB it becomes `.1`, and the one before that goes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def keep(self, topic: str, bad: list[tuple[bytes, str]], now_ns: int, *, sync: bool = True) -> None:
        """Put refused lines on disk, with `sync` through a power cut; a disk that takes nothing stops nobody."""
        rows = [
            DeadLetter(now_ns, topic, reason, line[:_MAX_LINE_CHARS].decode(errors="replace")) for line, reason in bad
        ]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path.exists() and self._path.stat().st_size > _MAX_FILE_BYTES:
                self._path.replace(self._path.with_suffix(".jsonl.1"))
            with self._path.open("ab") as file:
                file.write(msgspec.json.Encoder().encode_lines(rows))
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            log.error("refused lines cannot be kept", lines=len(rows), topic=topic, error=str(error))
