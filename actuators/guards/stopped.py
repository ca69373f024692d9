"""Guard: after a stop nothing new is begun."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest


class Stopped:
    """What the kill switch says."""

    def __init__(self) -> None:
        self.why = ""

    def __call__(self, _request: GuardRequest, _now_ns: int) -> str:
        """Refuse while it is off."""
        return self.why
