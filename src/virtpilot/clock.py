"""The one place that reads the clock. Everywhere else time is an argument: nanoseconds, as `int`."""

from __future__ import annotations

import time
from typing import Final, Protocol

SECOND: Final = 1_000_000_000


def seconds(value: float) -> int:
    """Return `value` seconds as whole nanoseconds."""
    return round(value * SECOND)


class Clock(Protocol):
    """Where time comes from."""

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch (UTC); may step when the machine's clock is set."""

    def monotonic_ns(self) -> int:
        """Return nanoseconds that never go back; the zero point means nothing."""


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch (UTC); may step when the machine's clock is set."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return nanoseconds that never go back; the zero point means nothing."""
        return time.monotonic_ns()


class VirtualClock:
    """A clock that moves only when told: for tests, replay, the simulator and the demo."""

    def __init__(self, start_ns: int = 1_700_000_000 * SECOND) -> None:
        self._start_ns = start_ns
        self._elapsed_ns = 0

    def now_ns(self) -> int:
        """Return the virtual time since the epoch."""
        return self._start_ns + self._elapsed_ns

    def monotonic_ns(self) -> int:
        """Return the virtual time since this clock was made."""
        return self._elapsed_ns

    def advance(self, step_s: float) -> int:
        """Move on by `step_s` seconds and return the new time in ns."""
        if step_s < 0:
            raise ValueError(f"a virtual clock cannot go back: {step_s}")
        self._elapsed_ns += seconds(step_s)
        return self.now_ns()

    def step(self, by_s: float) -> None:
        """Set the wall clock forward or back, as a person or a time server does; no time passes."""
        self._start_ns += seconds(by_s)
