"""The chain: JSON lines, each with the SHA-256 of itself and of the line before it.

    {"hash":"<of the rest of this line>","n":17,"before":"<hash of line 16>","at_ns":…,"kind":"decision","entry":{…}}

    audit.jsonl          the newest lines
    audit-NUMBER.jsonl   older ones, by the number of their first line; they are never deleted by virtpilot
    audit.head           number and hash of the newest line that is known to be on disk: what a cut end is known by

The hash is over the bytes as they stand in the file, with what is before the first comma left out: there is one reading
of them. The first line follows a hash of 64 zeros. Source: Crosby and Wallach, Efficient Data Structures for
Tamper-Evident Logging (2009), of which this is the simplest kind: a linear chain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

CURRENT: Final = "audit.jsonl"
HEAD: Final = "audit.head"
FIRST_BEFORE: Final = "0" * 64
MAX_LINE: Final = 256 * 1024
_OPEN: Final = b'{"hash":"'
_CLOSE: Final = b'",'
_DIGITS: Final = 64


class Line(msgspec.Struct, frozen=True):
    """One line without its own hash; `before` is the hash of the line before it."""

    n: int
    before: str
    at_ns: int
    kind: str
    entry: dict[str, Any]


class Head(msgspec.Struct, frozen=True):
    """The newest line that is on disk."""

    n: int = 0
    hash: str = FIRST_BEFORE


def sealed(line: Line) -> tuple[bytes, str]:
    """Return a line as it stands in the file, with its newline, and its hash."""
    body = msgspec.json.encode(line)
    digest = sha256(body).hexdigest()
    return b"%b%b%b%b\n" % (_OPEN, digest.encode(), _CLOSE, body[1:]), digest


def opened(raw: bytes) -> tuple[Line, str]:
    """Return a line and its hash; raises ValueError with what is wrong with it."""
    text = raw.removesuffix(b"\n")
    start = len(_OPEN) + _DIGITS
    if not (text.startswith(_OPEN) and text[start : start + len(_CLOSE)] == _CLOSE):
        raise ValueError("is no line of an audit log")
    body = b"{" + text[start + len(_CLOSE) :]
    digest = sha256(body).hexdigest()
    if text[len(_OPEN) : start] != digest.encode():
        raise ValueError("was changed: its hash is another one")
    try:
        return msgspec.json.decode(body, type=Line), digest
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is no line of an audit log: {error}") from None


def files(folder: Path) -> list[Path]:
    """Return the files of a chain, the oldest first."""
    older = sorted(path for path in folder.glob("audit-*.jsonl") if path.stem.removeprefix("audit-").isdigit())
    current = folder / CURRENT
    return [*older, *([current] if current.exists() else [])]


def rotated(folder: Path, first: int) -> Path:
    """Return the name of a file that begins with a line's number."""
    return folder / f"audit-{first:012}.jsonl"


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines with their numbers in it; one that is too long comes in pieces, and is wrong in each."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            yield number, raw


def ends(path: Path) -> tuple[bytes, bytes]:
    """Return a file's first and last lines, without reading what is between; empty for an empty file."""
    with path.open("rb") as file:
        first = file.readline(MAX_LINE + 1)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE - 1))
        return first, (file.read().splitlines(keepends=True) or [b""])[-1]


def read_head(folder: Path) -> Head | None:
    """Return what is known to have been on disk; None where nothing is, raises ValueError where it is unreadable."""
    try:
        return msgspec.json.decode((folder / HEAD).read_bytes(), type=Head)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{HEAD} is not readable: {error}") from None
