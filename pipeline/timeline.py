"""The controller's time: the wall clock's, but for steps that somebody's setting of this machine's clock makes.

    the clock is set → time goes on as if it were not → most agents' samples have the new time → everything
    remembered moves along, so that what was left of a cooldown is left still

Where the agents' samples go on as before, this machine's clock is wrong: time goes on as theirs does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog

from virtpilot.clock import SECOND, Clock, seconds

log = structlog.get_logger(__name__)

_STEP_NS: Final = seconds(2)
_NEAR_NS: Final = seconds(60)
_HEARD_NS: Final = seconds(120)
# Moments are years after the epoch, spans are not.
_MOMENT_NS: Final = 10**17


class Timeline:
    """Tells what time it is; `moved` is called when all that is remembered has to move by so many ns."""

    def __init__(self, clock: Clock, moved: Callable[[int], None]) -> None:
        self._clock = clock
        self._moved = moved
        self._wall_ns, self._monotonic_ns = clock.now_ns(), clock.monotonic_ns()
        self._ahead_ns = 0
        """How far the wall clock is ahead of the time that is told."""
        self._leads: dict[str, tuple[int, int]] = {}
        """For each host how far its newest sample was ahead when it came, and when (monotonic) that was."""
        self._along: dict[str, bool] = {}
        """For each host that was heard since the clock was set whether it has the new time."""

    def now_ns(self) -> int:
        """Return the time; small corrections of the clock are followed."""
        wall_ns, monotonic_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        by_ns = (wall_ns - self._wall_ns) - (monotonic_ns - self._monotonic_ns)
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        if abs(by_ns) >= _STEP_NS:
            self._set(by_ns)
        return wall_ns - self._ahead_ns

    def _set(self, by_ns: int) -> None:
        log.warning("this machine's clock was set", by_s=by_ns / SECOND)
        self._ahead_ns += by_ns
        self._along.clear()
        if abs(self._ahead_ns) < _STEP_NS:
            self._ahead_ns = 0  # set back to what it was
        heard_ns = self._monotonic_ns - _HEARD_NS
        self._leads = {host: lead for host, lead in self._leads.items() if lead[1] >= heard_ns}

    def hear(self, host: str, time_ns: int) -> None:
        """Take the newest time that an agent's message bears."""
        now_ns, ahead_ns = self.now_ns(), self._ahead_ns
        if not ahead_ns:
            self._leads[host] = (time_ns - now_ns, self._monotonic_ns)
            return
        near_ns = min(_NEAR_NS, abs(ahead_ns) // 2)
        if abs(time_ns - now_ns) < near_ns:
            self._along[host] = False
        elif abs(time_ns - now_ns - ahead_ns) < near_ns:
            self._along[host] = True
            if 2 * sum(self._along.values()) > len(self._leads.keys() | self._along.keys()):
                self._follow(near_ns)

    def _follow(self, near_ns: int) -> None:
        """Take the new time, for most hosts have it too."""
        by_ns, self._ahead_ns = self._ahead_ns, 0
        agreed = sum(abs(lead_ns) < near_ns for lead_ns, _heard in self._leads.values())
        self._leads.clear()
        self._along.clear()
        # Who had another time before was right before: what was remembered by this clock is as good as nothing.
        if agreed:
            log.warning("the hosts' clocks were set too: all times that are remembered move along", by_s=by_ns / SECOND)
            self._moved(by_ns)


def moved(document: Any, by_ns: int) -> Any:
    """Return a JSON-able document in which every moment, a number under a name that ends in `_ns`, is another."""
    if isinstance(document, dict):
        return {
            key: _moment(value, by_ns) if _is_time(key, value) else moved(value, by_ns)
            for key, value in document.items()
        }
    if isinstance(document, list | tuple):
        return [moved(one, by_ns) for one in document]
    return document


def _is_time(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.endswith("_ns") and isinstance(value, int) and value >= _MOMENT_NS


def _moment(value: int, by_ns: int) -> int:
    return max(value + by_ns, 0)
