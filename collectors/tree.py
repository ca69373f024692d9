"""The files that the kernel tells in, below a root: /proc, /sys and the control groups."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

MAX_BYTES: Final = 4 * 1024 * 1024
# Kept descriptors lie above all that select(2), which MQTT clients use, can take.
KEPT_FROM: Final = 1024
_STEADY: Final = ("proc/", "sys/kernel/mm/", "sys/devices/system/node/")
_CHUNK: Final = 16 * 1024
_SHORT: Final = 1024  # no file that is told in pieces begins with one so short
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Kept(Protocol):
    """One file that is read again and again."""

    def read(self) -> str:
        """Return what the file says now; raises OSError, also once it is gone."""

    def close(self) -> None:
        """Let go of the file."""


class Tree(Protocol):
    """Reads one host's files by their path from its root, e.g. `proc/pressure/cpu`; raises OSError."""

    def read(self, path: str) -> str:
        """Return a file's text; raises FileNotFoundError where the kernel has no such file."""

    def names(self, path: str) -> list[str]:
        """Return the names in a folder; raises FileNotFoundError where the kernel has no such folder."""

    def keep(self, path: str) -> Kept:
        """Return a file to be read again and again; raises FileNotFoundError where the kernel has no such file."""


class FileTree:
    """The files of a real host, whose root is at `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = f"{str(root).rstrip('/')}/"

    def read(self, path: str) -> str:
        """Return a file's text, what is not ASCII replaced; raises OSError, also for a file that is too long."""
        descriptor = os.open(self._root + path, _FLAGS)
        try:
            return _text(descriptor)
        finally:
            os.close(descriptor)

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        return os.listdir(self._root + path)  # noqa: PTH208 - names, and four times as fast

    def keep(self, path: str) -> Kept:
        """Return a file to be read again and again: open where this process may have that many, else opened anew."""
        descriptor = os.open(self._root + path, _FLAGS)
        try:
            return OpenFile(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, KEPT_FROM))
        except OSError:  # no number so high is allowed, or none is left
            return Reread(self, path)
        finally:
            os.close(descriptor)


class OpenFile:
    """A file that stays open: a reading costs a fifth of one that opens it first."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> str:
        """Return what the file says now."""
        return _text(self._descriptor)

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class Reread:
    """A file that is opened for each reading."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree = tree
        self._path = path

    def read(self) -> str:
        """Return what the file says now."""
        return self._tree.read(self._path)

    def close(self) -> None:
        """Do nothing: nothing is held."""


class KeptTree:
    """Another tree, of which files of the whole kernel, which are read again and again, stay open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kept: dict[str, Kept] = {}

    def read(self, path: str) -> str:
        """Return a file's text; one that fails is let go of, and opened anew the next time."""
        if not path.startswith(_STEADY):
            return self._tree.read(path)
        if path not in self._kept:
            self._kept[path] = self._tree.keep(path)
        try:
            return self._kept[path].read()
        except OSError:
            self._kept.pop(path).close()
            raise

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        return self._tree.names(path)

    def keep(self, path: str) -> Kept:
        """Return a file of the caller's own."""
        return self._tree.keep(path)


def _text(descriptor: int) -> str:
    """Return all of a file; the kernel hands long ones out in pieces of its own size."""
    found = os.pread(descriptor, _CHUNK, 0)
    if len(found) >= _SHORT:
        pieces, length = [found], len(found)
        while found := os.pread(descriptor, _CHUNK, length):
            pieces.append(found)
            length += len(found)
            if length > MAX_BYTES:
                raise OSError("file too long")
        found = b"".join(pieces)
    return found.decode("ascii", "replace")
