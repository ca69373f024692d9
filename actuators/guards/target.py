"""Guard: the host that a guest is to go to must be there, have room for it, and offer all that it needs."""

from __future__ import annotations

from virtpilot.actuators.guards.request import GuardRequest, Target, span

_MIB = 1024 * 1024


class Targets:
    """How old the measurements of a target may be."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse a target that is not fit for the guest."""
        host, view = request.target, request.target_view
        if not host:
            return ""
        if view is None or not view.online:
            return f"{host} is not there, or takes no guests"
        if host == request.host:
            return f"the guest is on {host} already"
        off_ns = abs(now_ns - view.time_ns)
        if off_ns > self._limit_ns:
            return f"the measurements of {host} are {span(off_ns)} off, {span(self._limit_ns)} at most"
        return _unfit(host, view)


def _unfit(host: str, view: Target) -> str:
    if view.vcpus > view.cpus:
        return f"{host} has {view.cpus} CPUs for {view.vcpus} vCPUs"
    if view.memory_free_bytes < view.memory_spare_bytes:
        free, spare = view.memory_free_bytes // _MIB, view.memory_spare_bytes // _MIB
        return f"{host} would have {free} MiB of memory free, {spare} MiB have to be"
    return f"{host} does not offer {', '.join(view.lacks)}" if view.lacks else ""
