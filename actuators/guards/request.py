"""What a guard is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from virtpilot.actuators.guards.bucket import Budget
from virtpilot.clock import SECOND
from virtpilot.model import Mode

UP: Final = "up"
DOWN: Final = "down"
# virDomainState running and blocked: Xen shows an idle guest as blocked.
ALIVE: Final = frozenset({1, 2})
ANY: Final = frozenset(range(8))


class Input(msgspec.Struct, frozen=True):
    """Something else that the rule has read, and when it was measured; "" where nothing is stale in itself."""

    what: str
    time_ns: int


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The host that a guest is to go to, as last measured, with what is on its way there already."""

    online: bool
    time_ns: int
    cpus: int
    memory_free_bytes: int
    """What is free once those on their way are there, and this guest."""
    memory_spare_bytes: int
    """What has to stay free."""
    vcpus: int
    """How many the guest has."""


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
    fitting: frozenset[int] = ALIVE
    """The virDomainStates in which the action makes sense."""
    rung: int = 0
    target: str = ""
    target_view: Target | None = None
    """None where nothing moves."""
    knob: str = ""
    """What is set, "" where no knob is."""
    value: int = 0
    current: int = 0
    bounds: tuple[tuple[int, int, str], ...] = ()
    """The lowest and the highest value that may be set, each time with who says so."""
    opt_out: str = ""
    """The guest's tag that forbids every action, "" where it has none."""
    engine: str = ""
    """Why the guest is taken for one that virtpilot itself runs on, "" where it is not."""
    inputs: tuple[Input, ...] = ()
    """What the rule has read beside the guest's own newest sample."""
    budgets: tuple[Budget, ...] = ()
    """The rule's own."""
    effect_ns: int = 0
    """Within what time an effect is expected: until then a command that was done is no success; 0: none is."""
    approved: bool = False
    """Whether somebody has approved of exactly this."""

    @property
    def what(self) -> str:
        """What of the guest is changed: a knob, its place, or its state."""
        return self.knob or ("place" if self.target else "state")

    @property
    def turn(self) -> str:
        """Which way a knob goes, "" where none does."""
        if not self.knob or self.value == self.current:
            return ""
        return UP if self.value > self.current else DOWN


class Refusal(msgspec.Struct, frozen=True):
    """The guard that refuses, and why, for people."""

    guard: str
    reason: str


Check = Callable[[GuardRequest, int], str]
"""A guard: asked at a time (ns), it gives the reason for its refusal, or ""."""


def span(span_ns: float) -> str:
    """Return a span of time as the reasons have it."""
    return f"{span_ns / SECOND:.0f} s"
