"""The collector of one host: its own sources and all its guests, as samples of one moment, within a budget of time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from virtpilot.collectors import domain
from virtpilot.collectors.budget import Budget
from virtpilot.collectors.guest_groups import GuestGroups
from virtpilot.collectors.host import Host
from virtpilot.collectors.rates import Rates
from virtpilot.collectors.reading import RUNNING, number
from virtpilot.collectors.source import Fields, Look
from virtpilot.collectors.tree import KeptTree, Tree
from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import GuestStats, Hypervisor, Selective
from virtpilot.model import Sample

log = structlog.get_logger(__name__)

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class HostCollector:
    """Measures one host; what cannot be read is absent and said once, and stops nothing else."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        tree: Tree,
        tags: Mapping[str, str],
        cpus: frozenset[int],
        *,
        monotonic_ns: Callable[[], int],
        leased: domain.IsLeased = lambda guest, knob: False,  # noqa: ARG005 - the Protocol's names
        budget_s: float = math.inf,
    ) -> None:
        self._hypervisor = hypervisor
        self._tree = KeptTree(tree)
        self._tags = dict(tags)
        self._cpus = cpus
        self._leased = leased
        self._budget = Budget(budget_s, monotonic_ns)
        self._failing: set[str] = set()
        self.failures = 0
        self._host = Host(self._budget, self._failed, self._failing.discard)
        self._rates = Rates()
        self._meters: dict[str, domain.Meter] = {}
        self._groups = GuestGroups(tree)
        self._first = 0

    def collect(self, now_ns: int, only: frozenset[str] | None = None) -> list[Sample]:
        """Return the samples of this moment: the host first, then its guests; with `only`, those guests alone."""
        self._budget.begin()
        guests = self._guests(only)
        samples: list[Sample] = []
        if only is None:
            samples += self._host_samples(guests, now_ns)
            self._forget(guests)
        living = [guest for guest in reversed(guests or ()) if domain.lives_here(guest)]
        del guests
        runs = [guest.run for guest in reversed(living)]
        of_guests = []
        while living:  # a guest's statistics are let go of one by one: not all are there at once with all samples
            of_guests.append(self._guest(living.pop(), now_ns))
        self._add_groups(runs, of_guests, now_ns)
        for told in of_guests:
            samples += told
        self._budget.end(whole=only is None)
        return samples

    def _guests(self, only: frozenset[str] | None) -> list[GuestStats] | None:
        """Return the guests, None where the hypervisor does not tell."""
        hypervisor = self._hypervisor
        try:
            if only is not None and isinstance(hypervisor, Selective):
                guests = hypervisor.some(only)
            else:
                guests = hypervisor.guests()
        except HypervisorError as error:
            self._failed("hypervisor", error)
            return None
        self._failing.discard("hypervisor")
        return [guest for guest in guests if only is None or guest.uuid in only]

    def _guest(self, guest: GuestStats, now_ns: int) -> list[Sample]:
        meter = self._meters.get(guest.uuid)
        if meter is None:
            meter = self._meters[guest.uuid] = domain.Meter(self._tags, self._leased)
        return meter.samples(guest, now_ns)

    def _add_groups(self, runs: list[int], samples: list[list[Sample]], now_ns: int) -> None:
        """Add what the guests' control groups tell; out of time, the next tick goes on with those left out."""
        self._groups.begin()
        count = len(runs)
        for step in range(count):
            if self._budget.skips():
                self._first = (self._first + step) % count
                return
            index = (self._first + step) % count
            try:
                fields = self._groups.collect(runs[index], now_ns)
            except OSError as error:
                self._failed("cgroup", error)
                return
            samples[index][0].fields.update(fields)  # the guest itself comes before its devices
        self._failing.discard("cgroup")

    def _forget(self, guests: Sequence[GuestStats] | None) -> None:
        """Let a guest that went take its counters with it: it may come back with others."""
        if guests is not None:
            here = {guest.uuid for guest in guests}
            self._meters = {uuid: meter for uuid, meter in self._meters.items() if uuid in here}
            self._groups.keep({guest.run for guest in guests})

    def _host_samples(self, guests: list[GuestStats] | None, now_ns: int) -> Iterator[Sample]:
        """Yield the host, then its devices."""
        found = self._host.collect(Look(self._tree, self._rates, self._cpus, now_ns, _PAGE_BYTES))
        fields = found.fields
        fields |= self._budget.fields() | {"source_failures_total": self.failures}
        if guests is not None:
            fields |= self._totals(guests)
            fields |= _overcommit(fields)
        yield Sample("host", dict(self._tags), fields, now_ns)
        for device in found.devices:
            yield Sample(device.measurement, {**self._tags, device.tag: device.name}, device.fields, now_ns)

    def _failed(self, source: str, error: Exception) -> None:
        """Count each failure, say the first of a row."""
        self.failures += 1
        if source not in self._failing:
            self._failing.add(source)
            log.warning("cannot be measured", source=source, error=str(error))

    def _totals(self, guests: list[GuestStats]) -> Fields:
        running = [guest.stats for guest in guests if guest.stats.get("state.state") == RUNNING]
        skipped = getattr(self._hypervisor, "skipped", 0)
        return {
            "guests_running_count": len(running),
            "guests_defined_count": len(guests),
            "guests_skipped_total": skipped,
            "vcpus_allocated_count": sum(number(stats.get("vcpu.current")) or 0 for stats in running),
            "memory_allocated_bytes": sum(number(stats.get("balloon.current")) or 0 for stats in running) * 1024,
        }


def _overcommit(fields: Fields) -> Fields:
    """Return what the running guests were given against what there is."""
    found: Fields = {}
    for name, given, there in (
        ("cpu_overcommit_ratio", "vcpus_allocated_count", "cpus_count"),
        ("memory_overcommit_ratio", "memory_allocated_bytes", "memory_total_bytes"),
    ):
        if fields.get(there):
            found[name] = fields[given] / fields[there]
    return found
