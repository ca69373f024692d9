"""A file that is read each tick: it stays open, and what says the same as before is not parsed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from virtpilot.collectors.tree import Kept

T = TypeVar("T")


class Opened(Generic[T]):
    """One open file and what it said last; the caller changes nothing in what it is given."""

    def __init__(self, kept: Kept, parse: Callable[[str], T]) -> None:
        self._kept = kept
        self._parse = parse
        self._last: tuple[str, T] | None = None

    def read(self) -> T:
        """Return what it says now; raises OSError."""
        text = self._kept.read()
        if self._last is None or self._last[0] != text:
            self._last = (text, self._parse(text))
        return self._last[1]

    def close(self) -> None:
        """Let go of the file."""
        self._kept.close()
