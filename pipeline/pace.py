"""How fast an outage's backlog follows: as fast as what is measured now does not have to wait for it."""

from __future__ import annotations

from typing import Final

from virtpilot.clock import seconds

_FIRST: Final = 16
_LEAST: Final = 4
_LATE_NS: Final = seconds(5)


class Pace:
    """The window: how many resent messages may wait for a report at once, `most` of them.

    Backlog and live messages share the writers' queue. So the window doubles as long as live ones are reported as soon
    as they ever were; it halves when they are not, and grows slowly from then on, as a transport's congestion control.
    """

    def __init__(self, most: int) -> None:
        self._window = float(min(_FIRST, most))
        self._most = most
        self._soonest_ns: int | None = None
        self._halved_ns: int | None = None

    @property
    def window(self) -> int:
        """How many may wait now."""
        return int(self._window)

    def resent_reported(self) -> None:
        """Take in that a resent message was reported."""
        step = 1.0 if self._halved_ns is None else _LEAST / self._window
        self._window = min(self._window + step, self._most)

    def live_reported(self, took_ns: int, now_ns: int) -> None:
        """Take in how long a message that was sent once had to wait for its report."""
        if self._soonest_ns is None or took_ns < self._soonest_ns:
            self._soonest_ns = took_ns
        # What was sent before the last halving tells nothing of its effect.
        seen = self._halved_ns is None or now_ns - took_ns >= self._halved_ns
        if took_ns > self._soonest_ns + _LATE_NS and seen:
            self._window = min(max(self._window / 2, _LEAST), self._most)
            self._halved_ns = now_ns
