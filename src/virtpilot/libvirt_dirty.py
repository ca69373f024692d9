"""How fast guests change their memory: calculations started now and then, never while a job runs on the guest.

Source: virDomainStartDirtyRateCalc (libvirt 7.2), virDomainGetJobStats; the result is read with the guests' statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final
from zlib import crc32

import msgspec

from virtpilot.clock import SECOND, seconds
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_stats import Reading
from virtpilot.libvirt_walk import Walk

_CALCULATION_S: Final = 1
_GUEST_PATIENCE_S: Final = 0.5
_BUDGET_S: Final = 0.25
_LONGEST_NS: Final = seconds(60)
_RUNNING: Final = 1
_MIB: Final = 1024 * 1024
_PAGE_SAMPLING: Final = 0


class _Guest(msgspec.Struct):
    """A guest's calculations: when the next is due, when the present one began, and the last result."""

    run: int
    due_ns: int
    began_ns: int | None = None
    rate_bytes: int | None = None
    measured_ns: int = 0


class DirtyRates:
    """The dirty rates of the guests of one libvirt, each measured every `every_s` seconds; 0: never."""

    def __init__(self, link: LibvirtLink, *, every_s: float) -> None:
        binding = link.binding
        self._link = link
        self._every_ns = seconds(every_s)
        self._able = every_s > 0 and hasattr(binding, "VIR_DOMAIN_STATS_DIRTYRATE")
        self._walk = Walk(link, Lane.DETAILS, patience_s=_GUEST_PATIENCE_S, budget_s=_BUDGET_S)
        self._guests: dict[str, _Guest] = {}

    def pending(self) -> bool:
        """Return whether a result is to be read."""
        return any(guest.began_ns is not None for guest in self._guests.values())

    def refresh(self, guests: Collection[Reading], now_ns: int) -> None:
        """Take results and start what is due; raises HypervisorError, never for one guest."""
        if not self._able:
            return
        self._guests = {guest.uuid: self._of(guest, now_ns) for guest in guests}
        for guest in guests:
            self._take(guest, now_ns)
        due = [guest.uuid for guest in guests if self._due(guest, now_ns)]
        if not due:
            return
        self._walk.keep(self._guests)
        walked = self._walk.over(due, self._start)
        for uuid, started in walked.found.items():
            if started:
                self._guests[uuid].began_ns = now_ns
                self._guests[uuid].due_ns = now_ns + self._every_ns
        for uuid in walked.gone:  # a QEMU that cannot, or that would not just now
            self._guests[uuid].due_ns = now_ns + self._every_ns

    def numbers(self, uuid: str, now_ns: int) -> Mapping[str, int | float]:
        """Return a guest's last dirty rate and its age; nothing of one that was too long ago."""
        guest = self._guests.get(uuid)
        if guest is None or guest.rate_bytes is None or now_ns - guest.measured_ns > 3 * self._every_ns:
            return {}
        age_s = (now_ns - guest.measured_ns) / SECOND
        return {"memory_dirty_bytes_per_second": guest.rate_bytes, "memory_dirty_age_seconds": age_s}

    def _of(self, guest: Reading, now_ns: int) -> _Guest:
        """Return what is known of a guest's present run; a new one's first turn comes somewhere in the interval."""
        known = self._guests.get(guest.uuid)
        if known is not None and known.run == guest.run:
            return known
        return _Guest(guest.run, now_ns + self._every_ns * (crc32(guest.uuid.encode()) % 1000) // 1000)

    def _due(self, reading: Reading, now_ns: int) -> bool:
        guest = self._guests[reading.uuid]
        runs = reading.whole and reading.stats.get("state.state") == _RUNNING
        return runs and guest.began_ns is None and guest.due_ns <= now_ns

    def _take(self, reading: Reading, now_ns: int) -> None:
        guest, stats = self._guests[reading.uuid], reading.stats
        if guest.began_ns is None:
            return
        rate = stats.get("dirtyrate.megabytes_per_second")
        measured = stats.get("dirtyrate.calc_status") == self._link.binding.VIR_DOMAIN_DIRTYRATE_MEASURED
        if measured and isinstance(rate, int) and 0 <= rate < _MIB * _MIB:
            guest.rate_bytes, guest.measured_ns, guest.began_ns = rate * _MIB, now_ns, None
        elif now_ns - guest.began_ns > _LONGEST_NS:
            guest.began_ns = None

    def _start(self, connection: Any, uuid: str) -> bool:
        """Start a guest's calculation unless a job runs on it, which it could disturb."""
        domain = connection.lookupByUUIDString(uuid)
        if domain.jobStats().get("type") != self._link.binding.VIR_DOMAIN_JOB_NONE:
            return False
        domain.startDirtyRateCalc(_CALCULATION_S, _PAGE_SAMPLING)
        return True
