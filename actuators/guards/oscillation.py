"""Guard: what goes to and fro is damped, the longer the more often it has done so.

A guest oscillates when it returns to a host that it left within the window (A→B→A); a knob when it turns (up, then
down) and turns again. The n-th return waits for the back-off times 2^n since the guest left; a knob's first turn is
free. Knobs given back are no turns: they were meant to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import structlog
from msgspec.structs import replace

from virtpilot.actuators.guards.memory import InFlight, Memory, Step, Trail, key
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest, span
from virtpilot.clock import seconds

log = structlog.get_logger(__name__)

PLACE: Final = "place"
_STEPS: Final = 8


class Oscillations:
    """The way that each guest's place and knobs have gone lately."""

    def __init__(self, memory: Memory, limits: GuardOptions) -> None:
        self._trails = memory.trails
        self._window_ns = seconds(limits.oscillation_window_s)
        self._backoff_ns = seconds(limits.oscillation_backoff_s)

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse a return or a turn that comes too soon."""
        name, goal = key(request.guest, request.what), request.target or request.turn
        trail = self._trails.get(name)
        if trail is None or not goal:
            return ""
        left_ns = self._returns(trail, request.what, goal, now_ns)
        if left_ns is None:
            return ""
        counted = trail.swings - (request.what != PLACE)
        wait_ns = 0 if counted < 0 else min(self._backoff_ns << min(counted, 20), self._window_ns)
        if now_ns - left_ns >= wait_ns:
            return ""
        if not trail.damped:
            self._trails[name] = replace(trail, damped=True)
        where, left = f"back to {goal}" if request.what == PLACE else goal, span(left_ns + wait_ns - now_ns)
        swings = f"{trail.swings} swings before this"
        return f"{_way(trail, request.what)} and would go {where}: kept from swinging for another {left} ({swings})"

    def _returns(self, trail: Trail, what: str, goal: str, now_ns: int) -> int | None:
        """Return since when the goal was left, where going there is a return; else None."""
        recent = [step for step in trail.steps if 0 <= now_ns - step.at_ns < self._window_ns]
        if what == PLACE:
            return next((step.at_ns for step in reversed(recent) if step.goal == goal), None)
        return recent[-1].at_ns if recent and recent[-1].goal != goal else None

    def done(self, flight: InFlight, now_ns: int) -> None:
        """Take note of what was done: where the guest was, or which way its knob went."""
        what, goal = flight.what, flight.target or flight.turn
        if not goal or not self._window_ns:
            return
        name = key(flight.guest, what)
        trail = self._trails.get(name) or Trail()
        swung = self._returns(trail, what, goal, now_ns) is not None
        step = Step(flight.host if what == PLACE else goal, now_ns)
        grown = replace(trail, steps=[*trail.steps, step][-_STEPS:])
        if swung:
            grown = replace(grown, swings=trail.swings + 1, swung_ns=now_ns)
            if self._alarming(what, grown):
                log.warning("oscillation", guest=flight.guest, what=what, swings=grown.swings, way=_way(grown, what))
        self._trails[name] = grown

    def _alarming(self, what: str, trail: Trail) -> bool:
        return trail.damped or trail.swings > (0 if what == PLACE else 1)

    def alarms(self) -> Iterator[tuple[str, str, str]]:
        """Yield each guest that oscillates with what does, and the way it went; any thread may ask."""
        for name, trail in list(self._trails.items()):
            if not trail.damped and not trail.swings:
                continue  # as nearly all
            guest, _, what = name.rpartition(" ")
            if self._alarming(what, trail):
                yield guest, what, _way(trail, what)

    def forget(self, now_ns: int) -> None:
        """Drop the trails of what has been still for the window."""
        for name in [name for name, trail in self._trails.items() if self._still(trail, now_ns)]:
            del self._trails[name]

    def _still(self, trail: Trail, now_ns: int) -> bool:
        return not 0 <= now_ns - trail.steps[-1].at_ns < self._window_ns


def _way(trail: Trail, what: str) -> str:
    if what == PLACE:
        return "the guest went from " + " to ".join([*(step.goal for step in trail.steps), "where it is"])
    return f"{what} went " + ", ".join(step.goal for step in trail.steps)
