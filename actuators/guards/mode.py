"""Guard: a rule goes only as far as its mode lets it."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.model import Mode


def mode(request: GuardRequest, _now_ns: int) -> str:
    """Refuse what is not to be done by itself."""
    match request.mode:
        case Mode.ACT:
            return ""
        case Mode.APPROVE:
            return f"rule {request.rule} acts on approval only, and approval is not given"
        case Mode.OBSERVE:
            return f"rule {request.rule} only observes"
