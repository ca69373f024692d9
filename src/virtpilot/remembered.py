"""What was worked out of texts that come again and again, bounded by how long the texts are together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

V = TypeVar("V")

MAX_BYTES: Final = 16 * 1024 * 1024


class Remembered(Generic[V]):
    """Values by texts; all are forgotten where one more text would be too much. Texts that come once cost no more.

    `weigh` tells how many bytes a value is counted as, beside its text.
    """

    def __init__(self, most_bytes: int = MAX_BYTES, weigh: Callable[[V], int] = lambda _value: 0) -> None:
        self._most_bytes = most_bytes
        self._weigh = weigh
        self._bytes = 0
        self._values: dict[bytes, V] = {}
        self.get: Final = self._values.get
        """Return a text's value, None where it is not known."""

    def __len__(self) -> int:
        return len(self._values)

    def put(self, text: bytes, value: V) -> None:
        """Remember a text's value, unless the text alone is too long."""
        weight = len(text) + self._weigh(value)
        if weight > self._most_bytes:
            return
        if text in self._values:
            self._bytes -= len(text) + self._weigh(self._values.pop(text))
        if self._bytes + weight > self._most_bytes:
            self._values.clear()
            self._bytes = 0
        self._bytes += weight
        self._values[text] = value
