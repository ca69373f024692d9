"""Guard: nothing is done on measurements that are too old, or from the future."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest, span


class Freshness:
    """How old the measurements may be."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse where the newest sample is stale."""
        age_ns, limit_ns = now_ns - request.sample_ns, self._limit_ns
        if age_ns > limit_ns:
            return f"the newest sample is {span(age_ns)} old, {span(limit_ns)} at most"
        if -age_ns > limit_ns:
            return f"the newest sample lies {span(-age_ns)} in the future: the clock of {request.host} is wrong"
        return ""
