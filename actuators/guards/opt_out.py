"""Guard: a guest whose owner forbids it is left alone."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest


def opt_out(request: GuardRequest, _now_ns: int) -> str:
    """Refuse every action on a guest with the tag."""
    return f"the guest's tag {request.opt_out} forbids it" if request.opt_out else ""
