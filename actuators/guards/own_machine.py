"""Guard: virtpilot does nothing to the machines that it runs on: it would saw off its own branch."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest


def own_machine(request: GuardRequest, _now_ns: int) -> str:
    """Refuse whatever is to be done to a guest that runs the controller, the broker or the store."""
    return f"virtpilot itself runs on this guest ({request.engine})" if request.engine else ""
