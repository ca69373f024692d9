"""The windows' histories on disk, slice by slice, apart from the state: each whole now and then, and what came since.

    windows-DIGEST.jsonl    one history: a line for some of its subjects; replaced atomically, once in its window
    windows-DIGEST.more     what is newer, line by line; a line that is torn never was

They are most of what the signals' state is (hundreds of megabytes for 10,000 guests and windows of half an hour), and a
crash may cost them the newest samples: a thirtieth of the window, ten seconds at least.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import structlog

from virtpilot.clock import Clock
from virtpilot.errors import StateError
from virtpilot.pipeline.state import sync_folder
from virtpilot.rules.signals.saved import SavedHistory
from virtpilot.rules.signals.windows import Key, Told, Windows

log = structlog.get_logger(__name__)

_SHARE: Final = 30
_MORE: Final = ".more"


class WindowFiles:
    """Writes histories that are due; without a folder none."""

    def __init__(self, folder: Path | None, clock: Clock, every_ns: int) -> None:
        self.failures = 0
        self._folder = folder
        self._clock = clock
        self._every_ns = every_ns
        self._due_ns: dict[str, int] = {}
        self._told: dict[str, tuple[Told, int]] = {}
        """How far each file is, and until when it is only added to."""
        self._writer = ThreadPoolExecutor(1, "windows-writer")
        self._putting: tuple[Path, Future[None]] | None = None
        self._paths: dict[Key, Path] = {}
        self._tidied: set[str] | None = None
        """The names of all files that are there, as far as is known since others were last removed."""

    def slices(self, windows: Windows, *, all_now: bool = False) -> Iterator[None]:
        """Write the histories that are due, or all of them; a slice at each step."""
        if self._folder is None:
            return
        keep = set()
        for key in windows.histories():
            path = self._path(self._folder, key)
            keep.add(path.name)
            if not all_now and (self._clock.monotonic_ns() < self._due_ns.get(path.name, 0) or self._is_putting(path)):
                continue
            try:
                yield from self._save(path, windows, key, whole=all_now)
            except OSError as error:
                self._failed(path, error)
            self._due_ns[path.name] = self._clock.monotonic_ns() + max(self._every_ns, key[1] // _SHARE)
        if keep != self._tidied:
            self._tidy(self._folder, keep)
            self._tidied = keep

    def _path(self, folder: Path, key: Key) -> Path:
        if key not in self._paths:
            self._paths[key] = _path(folder, key)
        return self._paths[key]

    def _save(self, path: Path, windows: Windows, key: Key, *, whole: bool) -> Iterator[None]:
        """Add what is new, or write the whole where it is time, or where more has changed than came."""
        if self._is_putting(path):
            self._wait()
        told, until_ns = self._told.get(path.name, (None, 0))
        if whole or told is None or told.past is not windows.past(key) or self._clock.monotonic_ns() >= until_ns:
            self._told.pop(path.name, None)
            told, until_ns = Told(windows.past(key)), self._clock.monotonic_ns() + key[1]
            yield from self._write(path, windows.dump(key, told))
            self._told[path.name] = told, until_ns
        else:
            yield from self._add(path, windows.dump(key, told))

    def _write(self, path: Path, slices: Iterator[SavedHistory]) -> Iterator[None]:
        temporary = path.with_suffix(".part")
        if path.name not in (self._tidied or ()):
            self._tidied = None
        with temporary.open("wb") as file:
            for one in slices:
                file.write(msgspec.json.encode(one) + b"\n")
                yield
        self._wait()
        self._putting = path, self._writer.submit(_put, temporary, path)

    def _add(self, path: Path, slices: Iterator[SavedHistory]) -> Iterator[None]:
        with path.with_suffix(_MORE).open("ab") as file:
            for one in slices:
                file.write(msgspec.json.encode(one) + b"\n")
                yield
        self._wait()
        self._putting = path, self._writer.submit(_sync, path.with_suffix(_MORE))

    def _is_putting(self, path: Path) -> bool:
        """Tell whether a file that was written is still on its way to this place: its disk may be slow."""
        return self._putting is not None and self._putting[0] == path and not self._putting[1].done()

    def _wait(self) -> None:
        if self._putting is not None:
            (path, putting), self._putting = self._putting, None
            try:
                putting.result()
            except OSError as error:
                self._failed(path, error)

    def _failed(self, path: Path, error: OSError) -> None:
        self.failures += 1
        self._told.pop(path.name, None)
        log.error("windows not saved", path=str(path), error=str(error))

    def _tidy(self, folder: Path, keep: set[str]) -> None:
        """Remove the files of windows that no rule reads any more, and what broken writes of such have left."""
        if self._putting is not None and self._putting[0].name not in keep:
            self._wait()
        for path in [one for suffix in (".jsonl", _MORE, ".part") for one in folder.glob(f"windows-*{suffix}")]:
            name = path.with_suffix(".jsonl").name
            if name not in keep:
                self._due_ns.pop(name, None)
                self._told.pop(name, None)
                path.unlink(missing_ok=True)

    def close(self, windows: Windows) -> None:
        """Write all of them and let go."""
        for _ in self.slices(windows, all_now=True):
            pass
        self._wait()
        self._writer.shutdown()


def load(folder: Path) -> Iterator[SavedHistory]:
    """Yield all histories, slice by slice, newer ones behind; raises StateError for what cannot be read."""
    for path in sorted(folder.glob("windows-*.jsonl")):
        for file in (path, path.with_suffix(_MORE)):
            try:
                yield from _lines(file)
            except OSError as error:
                raise StateError(f"cannot read windows at {file}: {error}") from error
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise StateError(f"windows at {file} are damaged: {error}") from error


def _lines(path: Path) -> Iterator[SavedHistory]:
    if path.suffix == _MORE and not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if path.suffix == _MORE and not line.endswith(b"\n"):
                log.warning("windows: torn line left out", path=str(path))
                return
            yield msgspec.json.decode(line, type=SavedHistory)


def _path(folder: Path, key: Key) -> Path:
    digest = hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]
    return folder / f"windows-{digest}.jsonl"


def _put(temporary: Path, path: Path) -> None:
    """Put a file that was written in its place; what was newer than the one before it, it holds. Runs in a thread."""
    _sync(temporary)
    temporary.replace(path)
    path.with_suffix(_MORE).unlink(missing_ok=True)
    sync_folder(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file is on disk; runs in a thread."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
