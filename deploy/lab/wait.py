"""Waiting with a deadline for what announces itself in no other way than by being there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from deploy.lab.errors import LabError
from virtpilot.clock import SECOND, Clock, SystemClock, seconds

T = TypeVar("T")
_SELDOM_S: Final = 0.5


def pause_s(step_s: float, took_s: float) -> float:
    """Return how long to wait before asking again, given how long the asking took.

    Who asks by way of a process takes the CPU from what is waited for: a fifth of the time is spent asking, at the most
    unless that were more seldom than every half second.
    """
    return max(step_s, min(4 * took_s, _SELDOM_S))


def until(
    condition: Callable[[], T | None],
    timeout_s: float,
    what: str,
    *,
    step_s: float = 0.05,
    clock: Clock | None = None,
) -> T:
    """Return the condition's first true value; raises LabError naming `what` after `timeout_s` seconds."""
    clock = clock or SystemClock()
    pause = threading.Event()
    deadline = clock.monotonic_ns() + seconds(timeout_s)
    while True:
        began = clock.monotonic_ns()
        value = condition()
        if value:
            return value
        asked = clock.monotonic_ns()
        if asked >= deadline:
            raise LabError(f"{what}: not within {timeout_s:g} s")
        pause.wait(pause_s(step_s, (asked - began) / SECOND))
