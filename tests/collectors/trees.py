"""Trees for tests: texts in a dictionary, and a folder whose root changes between two moments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from virtpilot.collectors.tree import FileTree, Kept, Reread


class TextTree:
    """Files by path; what is not there raises `missing`."""

    def __init__(self, files: Mapping[str, str] | None = None, missing: type[OSError] = FileNotFoundError) -> None:
        self.files = dict(files or {})
        self.missing = missing
        self.reads: list[str] = []

    def read(self, path: str) -> str:
        self.reads.append(path)
        if path not in self.files:
            raise self.missing(path)
        return self.files[path]

    def names(self, path: str) -> list[str]:
        start = f"{path}/"
        names = {file[len(start) :].partition("/")[0] for file in self.files if file.startswith(start)}
        if not names:
            raise self.missing(path)
        return sorted(names)

    def keep(self, path: str) -> Kept:
        self.read(path)
        return Reread(self, path)


class MovingTree:
    """A recorded tree; `root` is set to another one to let time pass."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> str:
        return FileTree(self.root).read(path)

    def names(self, path: str) -> list[str]:
        return FileTree(self.root).names(path)

    def keep(self, path: str) -> Kept:
        self.read(path)
        return Reread(self, path)
