"""The collector of one host: its CPU, memory, load, pressure and all its guests, as samples of one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog

from virtpilot.collectors import cpu, domain, load, memory, pressure
from virtpilot.collectors.proc import ReadProc
from virtpilot.collectors.rates import Rates
from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import GuestStats, Hypervisor
from virtpilot.model import Sample

log = structlog.get_logger(__name__)

Fields = dict[str, int | float]
_RUNNING: Final = 1


class IsLeased(Protocol):
    """Tells whether virtpilot holds a knob of a guest just now."""

    def __call__(self, guest: str, knob: str) -> bool:
        """Return True while a lease is alive."""


class HostCollector:
    """Measures one host; what cannot be read is absent and said once, and stops nothing else."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        read_proc: ReadProc,
        tags: Mapping[str, str],
        cpus: frozenset[int],
        *,
        monotonic_ns: Callable[[], int],
        leased: IsLeased = lambda guest, knob: False,  # noqa: ARG005 - the Protocol's names
    ) -> None:
        self._hypervisor = hypervisor
        self._read = read_proc
        self._tags = dict(tags)
        self._cpus = cpus
        self._leased = leased
        self._monotonic_ns = monotonic_ns
        self._rates = Rates()
        self._duration_s: float | None = None
        self._failing: set[str] = set()
        self.failures = 0
        self.skipped = 0

    def collect(self, now_ns: int) -> list[Sample]:
        """Return the samples of this moment: the host first, then its guests."""
        began_ns = self._monotonic_ns()
        self._rates.begin()
        guests = self._guests()
        host = self._host(now_ns) | (self._totals(guests) if guests is not None else {})
        if self._duration_s is not None:
            host["tick_duration_seconds"] = self._duration_s
        samples = [Sample("host", dict(self._tags), host, now_ns)]
        for guest in filter(domain.lives_here, guests or ()):
            leased = {knob: int(self._leased(guest.uuid, knob)) for knob in guest.knobs}
            samples.extend(domain.parse(guest, self._tags, leased, self._rates, now_ns))
        self._duration_s = (self._monotonic_ns() - began_ns) / 1e9
        return samples

    def _guests(self) -> list[GuestStats] | None:
        try:
            guests = list(self._hypervisor.guests())
        except HypervisorError as error:
            self._failed("hypervisor", error)
            return None
        self._failing.discard("hypervisor")
        return guests

    def _host(self, now_ns: int) -> Fields:
        sources: dict[str, Callable[[], Fields]] = {
            "cpu": lambda: cpu.collect(self._read, self._cpus, self._rates, now_ns),
            "memory": lambda: memory.collect(self._read),
            "load": lambda: load.collect(self._read),
            "pressure": lambda: pressure.collect(self._read, self._rates, now_ns),
        }
        fields: Fields = {}
        for name, collect in sources.items():
            try:
                fields |= collect()
            except (OSError, ValueError) as error:
                self._failed(name, error)
            else:
                self._failing.discard(name)
        return fields

    def _failed(self, source: str, error: Exception) -> None:
        """Count each failure, say the first of a row."""
        self.failures += 1
        if source not in self._failing:
            self._failing.add(source)
            log.warning("cannot be measured", source=source, error=str(error))

    def _totals(self, guests: Iterable[GuestStats]) -> Fields:
        guests = list(guests)
        running = [guest.stats for guest in guests if guest.stats.get("state.state") == _RUNNING]
        skipped = getattr(self._hypervisor, "skipped", 0)
        return {
            "guests_running_count": len(running),
            "guests_defined_count": len(guests),
            "guests_skipped_total": skipped,
            "vcpus_allocated_count": sum(domain.number(stats.get("vcpu.current")) or 0 for stats in running),
            "memory_allocated_bytes": sum(domain.number(stats.get("balloon.current")) or 0 for stats in running) * 1024,
        }
