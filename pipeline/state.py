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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from virtpilot.errors import StateError

log = structlog.get_logger(__name__)

Change = tuple[Sequence[str], object]
"""A place in the document, and what is there from now on; None: nothing."""

Pieces = Mapping[str, Iterable[bytes]]
"""The parts of a document as JSON texts, each in one piece or several."""

_NUMBER: Final = "number"


class _Journal:
    """The changes since one document, open for appending."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.handle).st_size
        self.last = 0
        """The number of its newest commit."""
        self.sync_asked = False

    def append(self, line: bytes) -> None:
        """Write a line, whole or not at all; raises OSError."""
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self.handle, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.handle, self.size)
            raise
        self.size += len(line)


class StateLog:
    """Keeps one document of named parts; call `replace` first. Raises StateError when the disk does not take something.

    What is committed survives the end of this process at once, and the machine's when `synced` has come up to it.
    """

    def __init__(self, path: Path) -> None:
        self.written = 0
        """How many commits there were."""
        # How many are on disk for certain, by each thread's own word: one number of both might be set back.
        self._synced_by_journal = 0
        self._synced_by_document = 0
        self._path = path
        self._number = max([0, *_numbers(path)])
        self._journal: _Journal | None = None
        self._writer = ThreadPoolExecutor(1, "state-writer")
        self._syncer = ThreadPoolExecutor(1, "state-syncer")
        self._writing: Future[None] | None = None
        self._failure: OSError | None = None

    @property
    def synced(self) -> int:
        """How many commits are on disk for certain."""
        return max(self._synced_by_journal, self._synced_by_document)

    def begin(self) -> bool:
        """Begin a new document: what is committed from here on changes it; False while the last is being written.

        Its pieces may be made one after the other while changes go on: the journal holds whatever they missed.
        """
        if self._writing is not None:
            if not self._writing.done():
                return False
            writing, self._writing = self._writing, None
            if (failure := writing.exception()) is not None:
                raise self._error(failure)
        try:
            self._open(self._number + 1)
        except OSError as error:
            raise self._error(error) from error
        return True

    def finish(self, pieces: Pieces, *, wait: bool = False) -> None:
        """Put the new document in place, given its parts as JSON: by a thread; on disk when this returns if `wait`."""
        self._writing = self._writer.submit(self._write, self._number, pieces, self.written)
        if wait and (failure := self._writing.exception()) is not None:
            raise self._error(failure)

    def replace(self, pieces: Callable[[], Pieces]) -> None:
        """Replace the document; it is on disk when this returns."""
        if self._writing is not None:
            # Whatever became of it: what comes now is newer.
            self._writing.exception()
            self._writing = None
        self.begin()
        self.finish(pieces(), wait=True)

    def commit(self, changes: Iterable[Change]) -> None:
        """Append changes, all or none of them; raises StateError."""
        if self._journal is None:
            raise StateError(f"no document at {self._path} to change")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._error(failure)
        try:
            self._journal.append(msgspec.json.encode(list(changes)) + b"\n")
        except OSError as error:
            raise self._error(error) from error
        self.written += 1
        self._journal.last = self.written
        if not self._journal.sync_asked:
            self._journal.sync_asked = True
            self._syncer.submit(self._sync, self._journal)

    def settle(self) -> None:
        """Wait until the disk has done what it was asked for so far."""
        self._syncer.submit(int).result()

    def close(self) -> None:
        """Wait for what is being written, then let go."""
        self._writer.shutdown()
        self._syncer.shutdown()
        if self._journal is not None:
            os.close(self._journal.handle)
            self._journal = None

    def _error(self, cause: BaseException) -> StateError:
        return StateError(f"cannot save state at {self._path}: {cause}")

    def _open(self, number: int) -> None:
        """Go on in the journal of another document; a thread has made it, but for the first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        former, self._journal, self._number = self._journal, _Journal(_journal(self._path, number)), number
        if former is not None:
            # Behind what may still be asked for of it.
            self._syncer.submit(os.close, former.handle)

    def _sync(self, journal: _Journal) -> None:
        """Put a journal on disk; runs in a thread. One call serves all commits that came before it began."""
        journal.sync_asked = False
        last = journal.last
        try:
            os.fdatasync(journal.handle)
        except OSError as error:
            self._failure = error
        else:
            self._synced_by_journal = max(self._synced_by_journal, last)

    def _write(self, number: int, parts: Pieces, commits: int) -> None:
        """Put a document with so many commits in place, and make what the next one needs; runs in a thread."""
        # Not joined: of a large document that would take longer than to write it, and let no other thread go on.
        texts = [text for name, own in parts.items() for text in (b',"%b":' % name.encode(), *own)]
        replace_file(self._path, b'{"%b":%d' % (_NUMBER.encode(), number), *texts, b"}")
        self._synced_by_document = commits
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


def replace_file(path: Path, *texts: bytes) -> None:
    """Replace a file with some texts, one behind the other: whole and on disk, or not at all; raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with contextlib.ExitStack() as undone:
        undone.callback(_remove, temporary)
        with os.fdopen(handle, "wb") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        undone.pop_all()
    sync_folder(path.parent)


def _remove(temporary: str) -> None:
    with contextlib.suppress(OSError):
        Path(temporary).unlink()


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
