"""Sets of sequence numbers as inclusive ranges: a month of messages is one pair of numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


class SequenceSet:
    """Numbers held as sorted inclusive ranges that neither touch nor overlap."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __bool__(self) -> bool:
        return bool(self._firsts)

    @property
    def count(self) -> int:
        """How many numbers these are; not `len`, which ends at 64 bits where ranges from outside need not."""
        return sum(last - first + 1 for first, last in self.ranges())

    def add(self, first: int, last: int | None = None) -> None:
        """Take in a number, or all from `first` to `last`; a range that ends before it begins holds none."""
        last = first if last is None else last
        if last < first:
            return
        # All ranges that the new one touches become one with it.
        begin = bisect_right(self._lasts, first - 2)
        end = bisect_right(self._firsts, last + 1)
        if begin < end:
            first = min(first, self._firsts[begin])
            last = max(last, self._lasts[end - 1])
        self._firsts[begin:end] = [first]
        self._lasts[begin:end] = [last]

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges, lowest first."""
        return list(zip(self._firsts, self._lasts, strict=True))
