"""What a guard is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from virtpilot.actuators.guards.bucket import Budget
from virtpilot.clock import SECOND
from virtpilot.model import Mode


class GuardRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted, and what is known of its guest; `target` is "" where nothing moves."""

    mode: Mode
    rule: str
    cooldown_ns: int
    guest: str
    host: str
    sample_ns: int
    first_seen_ns: int
    state_code: int
    rung: int = 0
    target: str = ""
    opt_out: str = ""
    """The guest's tag that forbids every action, "" where it has none."""
    budgets: tuple[Budget, ...] = ()
    """The rule's own."""


class Refusal(msgspec.Struct, frozen=True):
    """The guard that refuses, and why, for people."""

    guard: str
    reason: str


Check = Callable[[GuardRequest, int], str]
"""A guard: asked at a time (ns), it gives the reason for its refusal, or ""."""


def span(span_ns: float) -> str:
    """Return a span of time as the reasons have it."""
    return f"{span_ns / SECOND:.0f} s"
