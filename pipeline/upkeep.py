"""Work that may wait, done slice by slice between messages, so that no message waits for all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_OVER: Final = object()


class Upkeep:
    """Chores in turn, a slice each; a slice is a step of an iterator, and should take a few milliseconds at most."""

    def __init__(self) -> None:
        self._chores: dict[str, Iterator[object]] = {}

    def begin(self, name: str, slices: Iterator[object]) -> None:
        """Take up a chore, unless the one of that name that was begun before is still under way."""
        self._chores.setdefault(name, slices)

    def waits(self) -> bool:
        """Tell whether something is left to do."""
        return bool(self._chores)

    def work(self) -> None:
        """Do one slice of the chore whose turn it is."""
        if not self._chores:
            return
        name = next(iter(self._chores))
        chore = self._chores.pop(name)
        if next(chore, _OVER) is not _OVER:
            self._chores.setdefault(name, chore)

    def finish(self) -> None:
        """Do all that is left."""
        while self._chores:
            self.work()

    def drop(self) -> None:
        """Leave what was begun: it is about what is no more."""
        self._chores.clear()
