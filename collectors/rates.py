"""Rates from counters: never negative, none across a reset, a clock step or too long a gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtpilot.clock import SECOND, seconds

MIN_ELAPSED_NS: Final = SECOND // 20
MAX_ELAPSED_NS: Final = seconds(300)


class Rates:
    """Remembers the last reading of each counter; what was not read for too long is forgotten."""

    def __init__(self) -> None:
        self._former: dict[tuple[str, ...], tuple[int, Mapping[str, float]]] = {}
        self._swept_ns = 0

    def __len__(self) -> int:
        return len(self._former)

    def grown(self, key: tuple[str, ...], values: Mapping[str, float], now_ns: int) -> tuple[dict[str, float], float]:
        """Return each counter's increase since the last reading, and the seconds since.

        A first reading, one that was reset or what cannot be compared is left out; the caller changes no `values`.
        """
        if abs(now_ns - self._swept_ns) > MAX_ELAPSED_NS:
            self._sweep(now_ns)
        former_ns, former = self._former.get(key, (now_ns, {}))
        self._former[key] = (now_ns, values)
        elapsed_ns = now_ns - former_ns
        if not MIN_ELAPSED_NS <= elapsed_ns <= MAX_ELAPSED_NS:
            return {}, 0.0
        increases = {
            name: value - former[name] for name, value in values.items() if name in former and value >= former[name]
        }
        return increases, elapsed_ns / SECOND

    def rate(self, key: tuple[str, ...], value: float, now_ns: int) -> float | None:
        """Return the increase per second of one counter."""
        increases, elapsed_s = self.grown(key, {"": value}, now_ns)
        return increases[""] / elapsed_s if increases else None

    def _sweep(self, now_ns: int) -> None:
        self._swept_ns = now_ns
        self._former = {
            key: reading for key, reading in self._former.items() if abs(now_ns - reading[0]) <= MAX_ELAPSED_NS
        }
