"""Guard: a rule goes only as far as its mode lets it."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.model import Mode


def mode(request: GuardRequest, _now_ns: int) -> str:
    """Refuse what a rule that only observes wants; of approval the guard `approval` knows."""
    return f"rule {request.rule} only observes" if request.mode is Mode.OBSERVE else ""
