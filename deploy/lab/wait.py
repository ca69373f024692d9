"""Waiting with a deadline for what announces itself in no other way than by being there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from deploy.lab.errors import LabError
from virtpilot.clock import Clock, SystemClock, seconds

T = TypeVar("T")


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
        value = condition()
        if value:
            return value
        if clock.monotonic_ns() >= deadline:
            raise LabError(f"{what}: not within {timeout_s:g} s")
        pause.wait(step_s)
