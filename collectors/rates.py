"""Rates from counters: never negative, none across a reset, a clock step or too long a gap."""

from __future__ import annotations

from typing import Final

from virtpilot.clock import SECOND, seconds

MIN_ELAPSED_NS: Final = SECOND // 20
MAX_ELAPSED_NS: Final = seconds(300)


class Rates:
    """Remembers the last reading of each counter; what was not read in a round is forgotten in the next."""

    def __init__(self) -> None:
        self._former: dict[tuple[str, ...], tuple[int, float]] = {}
        self._present: dict[tuple[str, ...], tuple[int, float]] = {}

    def begin(self) -> None:
        """Start a round of readings."""
        self._former, self._present = self._present, {}

    def delta(self, key: tuple[str, ...], value: float, now_ns: int) -> tuple[float, float] | None:
        """Return (increase, seconds) since the last round; None for a first reading or one that cannot be compared."""
        self._present[key] = (now_ns, value)
        former = self._former.get(key)
        if former is None:
            return None
        elapsed_ns, increase = now_ns - former[0], value - former[1]
        if not MIN_ELAPSED_NS <= elapsed_ns <= MAX_ELAPSED_NS or increase < 0:
            return None
        return increase, elapsed_ns / SECOND

    def rate(self, key: tuple[str, ...], value: float, now_ns: int) -> float | None:
        """Return the increase per second."""
        found = self.delta(key, value, now_ns)
        return None if found is None else found[0] / found[1]
