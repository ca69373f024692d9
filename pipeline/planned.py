"""What becomes of a want before it is decided: an action with all that is known of it, or who is against it."""

from __future__ import annotations

import msgspec

from virtpilot.action import Action
from virtpilot.actuators.guards.request import GuardRequest, Refusal
from virtpilot.rules.decisions.want import Want
from virtpilot.rules.signals.table import Row


class Refused(Exception):
    """The action cannot be planned; carries the guard's name and the reason.

    Before `until_ns` it cannot either, as long as nothing is measured and nothing happens; 0 where that is not known.
    """

    def __init__(self, guard: str, reason: str, until_ns: float = 0) -> None:
        self.guard = guard
        self.reason = reason
        self.until_ns = until_ns
        super().__init__(reason)


class Planned(msgspec.Struct, frozen=True):
    """A want with the action for it, the reason for that, and what the guards look at."""

    want: Want
    row: Row
    action: Action
    reason: str
    request: GuardRequest
    held: Refusal | None = None
    """What the guard `concurrency` says: a place may be free when its turn comes."""
