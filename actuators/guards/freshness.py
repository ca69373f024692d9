"""Guard: nothing is done on measurements that are too old or from the future, the guest's or others that were read."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest, span


class Freshness:
    """How old the measurements may be."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse where the newest sample is stale, or something that the rule has read beside it."""
        if why := self._stale("the newest sample", request.sample_ns, now_ns):
            return f"{why}: the clock of {request.host} is wrong" if request.sample_ns > now_ns else why
        stale = (self._stale(one.what, one.time_ns, now_ns) for one in request.inputs)
        return next((why for why in stale if why), "")

    def _stale(self, what: str, time_ns: int, now_ns: int) -> str:
        age_ns, limit_ns = now_ns - time_ns, self._limit_ns
        if age_ns > limit_ns:
            return f"{what} is {span(age_ns)} old, {span(limit_ns)} at most"
        return f"{what} lies {span(-age_ns)} in the future" if -age_ns > limit_ns else ""
