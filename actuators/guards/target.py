"""Guard: the host that a guest is to go to must be there, have room for it, and offer all that it needs."""

from __future__ import annotations

from typing import Final

from virtpilot.actuators.guards.memory import Foreign, Memory, key
from virtpilot.actuators.guards.request import GuardRequest, Target, span
from virtpilot.clock import seconds

_MIB = 1024 * 1024


# So long a host that did not offer what a guest needs is not asked again.
_UNFIT_NS: Final = seconds(3600)


class Targets:
    """How old the measurements of a target may be, and which ones have turned out not to fit a guest."""

    def __init__(self, memory: Memory, limit_ns: int) -> None:
        self._unfit = memory.unfit
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
        unfit = self._unfit.get(key(request.guest, host))
        if unfit is not None and 0 < unfit.until_ns - now_ns <= _UNFIT_NS:
            return f"{unfit.what}, and is asked again in {span(unfit.until_ns - now_ns)}"
        return _too_small(host, view)

    def refused(self, guest: str, host: str, why: str, now_ns: int) -> None:
        """Take note that an agent has asked a host, and it is not fit for a guest."""
        self._unfit[key(guest, host)] = Foreign(why, now_ns + _UNFIT_NS)

    def unfit(self, guest: str) -> frozenset[str]:
        """Return the hosts that are not fit for a guest."""
        return frozenset(host for known in self._unfit for who, _, host in [known.partition(" ")] if who == guest)

    def forget(self, now_ns: int) -> None:
        """Let what was long ago be asked again."""
        for name, unfit in list(self._unfit.items()):
            if not 0 < unfit.until_ns - now_ns <= _UNFIT_NS:
                del self._unfit[name]


def _too_small(host: str, view: Target) -> str:
    if view.vcpus > view.cpus:
        return f"{host} has {view.cpus} CPUs for {view.vcpus} vCPUs"
    if view.memory_free_bytes < view.memory_spare_bytes:
        free, spare = view.memory_free_bytes // _MIB, view.memory_spare_bytes // _MIB
        return f"{host} would have {free} MiB of memory free, {spare} MiB have to be"
    return ""
