"""Reads below a proc file system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

ReadProc = Callable[[str], str]
MAX_BYTES: Final = 4 * 1024 * 1024


class ProcFiles:
    """Reads files below `root`; raises OSError, FileNotFoundError where the kernel has no such file."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root

    def __call__(self, path: str) -> str:
        """Return the text of the file at `path`."""
        with (self._root / path).open("rb") as file:
            return file.read(MAX_BYTES).decode("ascii", "replace")
