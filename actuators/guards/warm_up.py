"""Guard: after a guest's start or move its first rates are wrong."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest, span


class WarmUp:
    """How long a host must have measured a guest."""

    def __init__(self, warm_up_ns: int) -> None:
        self._warm_up_ns = warm_up_ns

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse where its host has measured the guest only just."""
        left_ns = request.first_seen_ns + self._warm_up_ns - now_ns
        return f"measured on {request.host} only just, {span(left_ns)} of warm-up left" if left_ns > 0 else ""
