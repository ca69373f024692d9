"""The windows' histories on disk: a file each, written anew now and then, slice by slice, apart from the state.

    windows-DIGEST.jsonl    one history: a line for some of its subjects; replaced atomically

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
from virtpilot.rules.signals.windows import Key, Windows

log = structlog.get_logger(__name__)

_SHARE: Final = 30


class WindowFiles:
    """Writes histories that are due; without a folder none."""

    def __init__(self, folder: Path | None, clock: Clock, every_ns: int) -> None:
        self.failures = 0
        self._folder = folder
        self._clock = clock
        self._every_ns = every_ns
        self._due_ns: dict[str, int] = {}
        self._writer = ThreadPoolExecutor(1, "windows-writer")
        self._putting: tuple[Path, Future[None]] | None = None

    def slices(self, windows: Windows, *, all_now: bool = False) -> Iterator[None]:
        """Write the histories that are due, or all of them; a slice at each step."""
        if self._folder is None:
            return
        keep = set()
        for key in windows.histories():
            path = _path(self._folder, key)
            keep.add(path.name)
            if not all_now and (self._clock.monotonic_ns() < self._due_ns.get(path.name, 0) or self._is_putting(path)):
                continue
            try:
                yield from self._write(path, windows.dump(key))
            except OSError as error:
                self._failed(path, error)
            self._due_ns[path.name] = self._clock.monotonic_ns() + max(self._every_ns, key[1] // _SHARE)
        self._tidy(self._folder, keep)

    def _write(self, path: Path, slices: Iterator[SavedHistory]) -> Iterator[None]:
        if self._is_putting(path):
            self._wait()
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            for one in slices:
                file.write(msgspec.json.encode(one) + b"\n")
                yield
        self._wait()
        self._putting = path, self._writer.submit(_put, temporary, path)

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
        log.error("windows not saved", path=str(path), error=str(error))

    def _tidy(self, folder: Path, keep: set[str]) -> None:
        """Remove the files of windows that no rule reads any more, and what broken writes of such have left."""
        if self._putting is not None and self._putting[0].name not in keep:
            self._wait()
        for path in (*folder.glob("windows-*.jsonl"), *folder.glob("windows-*.part")):
            name = path.with_suffix(".jsonl").name
            if name not in keep:
                self._due_ns.pop(name, None)
                path.unlink(missing_ok=True)

    def close(self, windows: Windows) -> None:
        """Write all of them and let go."""
        for _ in self.slices(windows, all_now=True):
            pass
        self._wait()
        self._writer.shutdown()


def load(folder: Path) -> Iterator[SavedHistory]:
    """Yield all histories, slice by slice; raises StateError for what cannot be read."""
    for path in sorted(folder.glob("windows-*.jsonl")):
        try:
            with path.open("rb") as file:
                for line in file:
                    yield msgspec.json.decode(line, type=SavedHistory)
        except OSError as error:
            raise StateError(f"cannot read windows at {path}: {error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StateError(f"windows at {path} are damaged: {error}") from error


def _path(folder: Path, key: Key) -> Path:
    digest = hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]
    return folder / f"windows-{digest}.jsonl"


def _put(temporary: Path, path: Path) -> None:
    """Put a file that was written in its place; runs in a thread."""
    with temporary.open("rb") as file:
        os.fdatasync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
