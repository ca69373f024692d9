"""Rates from counters: never negative, none across a reset, a clock step or too long a gap."""

from __future__ import annotations

from typing import Final

from virtpilot.clock import SECOND, seconds

MIN_ELAPSED_NS: Final = SECOND // 20
MAX_ELAPSED_NS: Final = seconds(300)


class Rates:
    """Remembers the last reading of each counter; what was not read for too long is forgotten."""

    def __init__(self) -> None:
        self._former: dict[tuple[str, ...], tuple[int, float]] = {}
        self._swept_ns = 0

    def __len__(self) -> int:
        return len(self._former)

    def delta(self, key: tuple[str, ...], value: float, now_ns: int) -> tuple[float, float] | None:
        """Return (increase, seconds) since the last reading; None for a first one or what cannot be compared."""
        if abs(now_ns - self._swept_ns) > MAX_ELAPSED_NS:
            self._sweep(now_ns)
        former = self._former.get(key)
        self._former[key] = (now_ns, value)
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

    def _sweep(self, now_ns: int) -> None:
        self._swept_ns = now_ns
        self._former = {
            key: reading for key, reading in self._former.items() if abs(now_ns - reading[0]) <= MAX_ELAPSED_NS
        }
