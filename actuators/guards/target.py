"""Guard: the host that a guest is to go to must be there, have room for it, and offer all that it needs."""

from __future__ import annotations

from typing import Final

from virtpilot.actuators.guards.memory import Memory, Unfit, key
from virtpilot.actuators.guards.request import GuardRequest, Target, span
from virtpilot.clock import seconds

_MIB = 1024 * 1024
# So long a host that did not offer what a guest needs is not asked again: it may have been short of memory just then,
# or of a network for good. Twice as long each time, until it has been left in peace for as long as the longest.
_AT_FIRST_NS: Final = seconds(300)
_AT_LAST_NS: Final = seconds(3600)


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
        if unfit is not None and _holds(unfit, now_ns):
            return f"{unfit.what}, and is asked again in {span(unfit.until_ns - now_ns)}"
        return _too_small(host, view)

    def refused(self, guest: str, host: str, why: str, now_ns: int) -> None:
        """Take note that an agent has asked a host, and it is not fit for a guest."""
        before = self._unfit.get(key(guest, host))
        for_ns = max(_AT_FIRST_NS, min(2 * before.for_ns, _AT_LAST_NS)) if before else _AT_FIRST_NS
        self._unfit[key(guest, host)] = Unfit(why, now_ns + for_ns, for_ns)

    def unfit(self, guest: str, now_ns: int) -> frozenset[str]:
        """Return the hosts that are not fit for a guest."""
        known = ((*name.partition(" "), unfit) for name, unfit in self._unfit.items())
        return frozenset(host for who, _, host, unfit in known if who == guest and _holds(unfit, now_ns))

    def forget(self, now_ns: int) -> None:
        """Let go of what was long ago, and of what a set clock has moved out of sight."""
        for name, unfit in list(self._unfit.items()):
            if not -_AT_LAST_NS < unfit.until_ns - now_ns <= _AT_LAST_NS:
                del self._unfit[name]


def _holds(unfit: Unfit, now_ns: int) -> bool:
    return 0 < unfit.until_ns - now_ns <= _AT_LAST_NS


def _too_small(host: str, view: Target) -> str:
    if view.vcpus > view.cpus:
        return f"{host} has {view.cpus} CPUs for {view.vcpus} vCPUs"
    if view.memory_free_bytes < view.memory_spare_bytes:
        free, spare = view.memory_free_bytes // _MIB, view.memory_spare_bytes // _MIB
        return f"{host} would have {free} MiB of memory free, {spare} MiB have to be"
    return ""
