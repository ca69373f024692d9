"""Guard: what a person is to approve of waits for it; the last one, so that nobody is asked for what cannot be done."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.model import Mode


def approval(request: GuardRequest, _now_ns: int) -> str:
    """Refuse what is not approved of yet."""
    if request.mode is Mode.APPROVE and not request.approved:
        return f"rule {request.rule} acts on approval only"
    return ""
