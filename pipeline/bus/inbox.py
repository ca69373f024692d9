"""What was received and not taken yet, for one thread that puts and any that take."""

from __future__ import annotations

import contextlib
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue that can be emptied, and ends; nobody waits in it after that."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._ended = False

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, item: T) -> None:
        """Put something behind what is there."""
        self._queue.put(item)

    def take(self, timeout_s: float) -> T | None:
        """Return what is there first, or None after `timeout_s` seconds, or at the end, where nothing is."""
        waits = timeout_s > 0 and not self._ended
        if not waits and self._queue.empty():
            return None
        try:
            found = self._queue.get(waits, timeout_s)
        except Empty:
            return None
        if found is None:
            # The end is for all who wait.
            self._queue.put(None)
        return found

    def clear(self) -> None:
        """Let go of what is there."""
        with contextlib.suppress(Empty):
            while self._queue.get_nowait() is not None:
                pass
            self._queue.put(None)

    def end(self) -> None:
        """Let whoever waits go, and nobody wait again."""
        self._ended = True
        self._queue.put(None)
