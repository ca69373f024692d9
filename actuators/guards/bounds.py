"""Guard: no knob is set below its floor or above its cap."""

from __future__ import annotations

from collections.abc import Mapping

from virtpilot.actuators.guards.options import Bounds
from virtpilot.actuators.guards.request import GuardRequest


class Limits:
    """The config's floors and caps, beside those that come with the request: the guest's own."""

    def __init__(self, bounds: Mapping[str, Bounds]) -> None:
        self._bounds = bounds

    def __call__(self, request: GuardRequest, _now_ns: int) -> str:
        """Refuse a value outside; one that leads back towards them is let through."""
        if not request.knob:
            return ""
        own = self._bounds.get(request.knob)
        all_bounds = [*request.bounds, *([(own.least, own.most, "the config")] if own is not None else [])]
        for least, most, whose in all_bounds:
            if request.value < min(least, request.current):
                return f"{request.knob} would be {request.value}, {whose} wants {least} at least"
            if request.value > max(most, request.current):
                return f"{request.knob} would be {request.value}, {whose} wants {most} at most"
        return ""
