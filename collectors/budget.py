"""How long a tick may take: what can wait is left out of one that is late, and the lateness is told."""

from __future__ import annotations

import math
from collections.abc import Callable

from virtpilot.clock import SECOND
from virtpilot.collectors.source import Fields


class Budget:
    """The time of one tick, from its start: the hypervisor's answer is part of it."""

    def __init__(self, limit_s: float, monotonic_ns: Callable[[], int]) -> None:
        self._limit_s = limit_s
        self._monotonic_ns = monotonic_ns
        self._began_ns = 0
        self._duration_s: float | None = None
        self._overruns = 0
        self._skipped = 0

    def begin(self) -> None:
        """Start a tick."""
        self._began_ns = self._monotonic_ns()

    def elapsed_s(self) -> float:
        """Return how long this tick has taken so far."""
        return (self._monotonic_ns() - self._began_ns) / SECOND

    def skips(self) -> bool:
        """Tell whether something that can wait has to, and count it."""
        late = self.elapsed_s() > self._limit_s
        self._skipped += late
        return late

    def end(self, *, whole: bool = True) -> None:
        """Note how long the tick took, and of a whole one tell it at the next."""
        elapsed_s = self.elapsed_s()
        self._overruns += elapsed_s > self._limit_s
        if whole:
            self._duration_s = elapsed_s

    def fields(self) -> Fields:
        """Return what the host's sample tells: how long the last tick took, and how often that was too long."""
        fields: Fields = {"tick_overruns_total": self._overruns, "tick_skips_total": self._skipped}
        if math.isfinite(self._limit_s):
            fields["tick_budget_seconds"] = self._limit_s
        if self._duration_s is not None:
            fields["tick_duration_seconds"] = self._duration_s
        return fields
