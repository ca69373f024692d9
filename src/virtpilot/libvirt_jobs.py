"""The jobs that libvirt carries out on guests (migrations, saves, dumps, backups) and how far each one is.

Source: virDomainGetJobStats, VIR_DOMAIN_EVENT_ID_JOB_COMPLETED.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from virtpilot.clock import Clock, seconds
from virtpilot.libvirt_link import Lane, LibvirtLink

_PATIENCE_S: Final = 1.0
# Half a beat below the second in which everybody asks, so that each second has an answer of its own.
_FRESH_NS: Final = seconds(0.8)
_KEEP_NS: Final = seconds(60)
# libvirt's name → ours and what turns its unit into ours.
_NUMBERS: Final[dict[str, tuple[str, float]]] = {
    "data_total": ("data_total_bytes", 1),
    "data_processed": ("data_processed_bytes", 1),
    "data_remaining": ("data_remaining_bytes", 1),
    "memory_bps": ("bandwidth_bytes_per_second", 1),
    "memory_iteration": ("iterations_count", 1),
    "auto_converge_throttle": ("throttle_ratio", 0.01),
    "time_elapsed": ("elapsed_seconds", 0.001),
    "downtime": ("downtime_seconds", 0.001),
}
# virDomainJobOperation, in its order.
_OPERATIONS: Final = (
    "", "start", "save", "restore", "migration_in", "migration_out", "snapshot", "snapshot_revert", "dump", "backup",
    "snapshot_delete",
)  # fmt: skip


class JobReading(msgspec.Struct, frozen=True):
    """A guest's job as libvirt tells it; `operation` is empty where it does not say."""

    running: bool
    operation: str = ""
    numbers: Mapping[str, float] = {}


class _Known(msgspec.Struct):
    asked_ns: int
    reading: JobReading | None = None
    asking: bool = True

    def serves(self, now_ns: int, *, begun: bool) -> bool:
        """Return whether libvirt need not be asked again: that there was no job says nothing of one that has begun."""
        none = self.reading is not None and not self.reading.running
        return now_ns - self.asked_ns < _FRESH_NS and (self.asking or not (begun and none))


class JobBook:
    """The last word on each guest's job; libvirt is asked about once a second, however many want to know."""

    def __init__(self, link: LibvirtLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def ask(self, guest: str, *, begun: bool = False) -> JobReading | None:
        """Return where a guest's job stands, None while nothing is known; raises HypervisorError, GuestNotFound.

        Who knows that a job has `begun` is not content with an older word that there is none.
        """
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            known = self._known.get(guest)
            if known is not None and known.serves(now_ns, begun=begun):
                return known.reading
            self._known = {uuid: one for uuid, one in self._known.items() if now_ns - one.asked_ns < _KEEP_NS}
            known = self._known[guest] = _Known(now_ns, known.reading if known is not None else None)
        try:
            told = self._link.call(
                Lane.PROGRESS, lambda opened: opened.lookupByUUIDString(guest).jobStats(), patience_s=_PATIENCE_S
            )
        finally:
            known.asking = False
        binding = self._link.binding
        running = told.get("type") in {binding.VIR_DOMAIN_JOB_BOUNDED, binding.VIR_DOMAIN_JOB_UNBOUNDED}
        known.reading = JobReading(running, read_operation(told), read_job(told) if running else {})
        return known.reading


def read_operation(told: Mapping[str, Any]) -> str:
    """Return the name of a job's operation, empty where it is not told or not known."""
    number = told.get("operation")
    return _OPERATIONS[number] if type(number) is int and 0 <= number < len(_OPERATIONS) else ""


def read_job(told: Mapping[str, Any]) -> dict[str, float]:
    """Return a job's statistics in bytes, seconds and ratios; what is not told is absent."""
    numbers = {name: value for name, value in told.items() if type(value) in {int, float} and 0 <= value < math.inf}
    found = {ours: numbers[theirs] * factor for theirs, (ours, factor) in _NUMBERS.items() if theirs in numbers}
    if {"memory_dirty_rate", "memory_page_size"} <= numbers.keys():
        found["dirty_bytes_per_second"] = float(numbers["memory_dirty_rate"] * numbers["memory_page_size"])
    return found
