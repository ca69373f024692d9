"""State on disk: a document and the changes since it, so that saving costs as much as has changed.

    state.json          the document, with its number; replaced atomically
    state-NUMBER.jsonl  what has changed since the document of that number: a line a commit

A new document is written by a thread while changes go on into a journal of its own; until it is in place, the document
before it and both journals hold the state. A line that is torn is a commit that never was: nothing came of it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from virtpilot.errors import StateError

log = structlog.get_logger(__name__)

Change = tuple[Sequence[str], object]
"""A place in the document, and what is there from now on; None: nothing."""

_NUMBER: Final = "number"


class StateLog:
    """Keeps one document; call `replace` first. All methods raise StateError when the disk does not take it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = max([0, *_numbers(path)])
        self._journal: int | None = None
        self._good = 0
        self._writer = ThreadPoolExecutor(1, "state")
        self._writing: Future[None] | None = None

    def replace(self, whole: Callable[[], dict[str, Any]], *, wait: bool) -> bool:
        """Begin anew with the whole document, on disk when this returns if `wait`.

        Without `wait` it is made and encoded at once and written by a thread; False, and it is not asked for, while the
        last one is still being written.
        """
        if self._writing is not None:
            if not wait and not self._writing.done():
                return False
            writing, self._writing = self._writing, None
            failure = writing.exception()
            if failure is not None and not wait:
                raise StateError(f"cannot save state at {self._path}: {failure}") from failure
        number = self._number + 1
        try:
            raw = msgspec.json.encode({_NUMBER: number, **whole()})
            self._open(number)
        except OSError as error:
            raise StateError(f"cannot save state at {self._path}: {error}") from error
        self._writing = self._writer.submit(self._write, number, raw)
        if wait and (failure := self._writing.exception()) is not None:
            raise StateError(f"cannot save state at {self._path}: {failure}") from failure
        return True

    def commit(self, changes: Iterable[Change]) -> None:
        """Append changes, all or none of them; they are on disk when this returns."""
        if self._journal is None:
            raise StateError(f"no document at {self._path} to change")
        line = msgspec.json.encode(list(changes)) + b"\n"
        try:
            _write_all(self._journal, line)
            os.fdatasync(self._journal)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._journal, self._good)
            raise StateError(f"cannot save state at {self._path}: {error}") from error
        self._good += len(line)

    def close(self) -> None:
        """Wait for what is being written, then let go."""
        self._writer.shutdown()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _open(self, number: int) -> None:
        """Go on in the journal of another document; a thread has made it, but for the first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        journal = os.open(_journal(self._path, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._journal is not None:
            os.close(self._journal)
        self._journal, self._good, self._number = journal, os.fstat(journal).st_size, number

    def _write(self, number: int, raw: bytes) -> None:
        """Put a document in place, and make what the next one needs; runs in the thread."""
        replace_file(self._path, raw)
        for former in _numbers(self._path):
            if former < number:
                _journal(self._path, former).unlink(missing_ok=True)
        _journal(self._path, number + 1).touch(0o600)
        sync_folder(self._path.parent)


def load(path: Path) -> dict[str, Any] | None:
    """Return the document at `path` with all changes, None where there is none; raises StateError if it is not ours."""
    try:
        raw = path.read_bytes()
        document: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        number = msgspec.convert(document.pop(_NUMBER, None), int)
        for journal in sorted(one for one in _numbers(path) if one >= number):
            for change in _changes(_journal(path, journal)):
                _put(document, *change)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read state at {path}: {error}") from error
    except msgspec.MsgspecError as error:
        raise StateError(f"state at {path} is damaged: {error}") from error
    return document


def _changes(path: Path) -> Iterable[tuple[list[str], Any]]:
    lines = path.read_bytes().split(b"\n")
    # Behind the last line feed is nothing, or a commit that was torn: nothing has left because of it.
    if torn := lines.pop():
        log.warning("state: a commit that was torn is left out", path=str(path), bytes=len(torn))
    for line in lines:
        yield from msgspec.json.decode(line, type=list[tuple[list[str], Any]])


def _put(document: dict[str, Any], place: list[str], value: Any) -> None:
    *parents, last = place
    for name in parents:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            raise msgspec.ValidationError(f"{name} holds nothing that could change")
    if value is None:
        document.pop(last, None)
    else:
        document[last] = value


def _journal(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}.jsonl")


def _numbers(path: Path) -> list[int]:
    names = (one.stem.rpartition("-")[2] for one in path.parent.glob(f"{path.stem}-*.jsonl"))
    return [int(name) for name in names if name.isdecimal()]


def _write_all(handle: int, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        left = left[os.write(handle, left) :]


def replace_file(path: Path, raw: bytes) -> None:
    """Replace a file: whole and on disk, or not at all; raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
