"""Guests: libvirt's bulk statistics as samples (virConnectGetAllDomainStats). Absent is absent, never 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from virtpilot.clock import SECOND
from virtpilot.collectors import limits
from virtpilot.collectors.layout import NS, Layout, Part, layout_of
from virtpilot.collectors.rates import MAX_ELAPSED_NS, MIN_ELAPSED_NS
from virtpilot.hypervisor import GuestStats
from virtpilot.model import Sample

Fields = dict[str, int | float]
Stats = Mapping[str, Any]

_RUNNING: Final = 1
_MAX: Final = 2**64
# (virDomainState, its reason) of a guest that another host tells of: one that comes in or goes out by a migration
# (paused: migration, starting up, post-copy), and the definition that a migration has left behind (shut off: migrated).
_ELSEWHERE: Final = frozenset({(3, 2), (3, 11), (3, 12), (5, 4)})


def lives_here(guest: GuestStats) -> bool:
    """Return whether a guest is this host's to tell of: during a migration both hosts list it."""
    return (guest.stats.get("state.state"), guest.stats.get("state.reason")) not in _ELSEWHERE


class Meter:
    """One guest, tick by tick: what it was told with last time, and where its fields are."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = tags
        self._of: tuple[str, Mapping[str, str]] | None = None
        self._own: dict[str, str] = {}
        self._knobs: dict[str, dict[str, str]] = {}
        self._layout: Layout | None = None
        self._before: Stats = {}
        self._before_ns = 0
        self._run = 0

    def samples(self, guest: GuestStats, leased: Mapping[str, int], now_ns: int) -> list[Sample]:
        """Return the guest's samples: itself, its vCPUs, I/O threads, disks, NICs, file systems and knobs."""
        stats = guest.stats
        renamed = self._know(guest)
        layout, same_devices = self._laid_out(stats, renamed=renamed)
        elapsed_s = self._elapsed_s(guest.run, now_ns)
        tick = _Tick(stats, self._before, elapsed_s, same_devices)
        self._before, self._before_ns, self._run = stats, now_ns, guest.run
        details = guest.details
        found = [
            Sample(part.measurement, part.tags, fields, now_ns)
            for part in layout.others
            if (fields := _read(stats, part))
        ]
        totals: Fields = {}
        for parts, configured, sums in (
            (layout.disks, details.disks, limits.disks),
            (layout.nics, details.nics, limits.nics),
        ):
            devices = [(part, tick.device(part, configured.get(part.label), totals)) for part in parts]
            found += [Sample(part.measurement, part.tags, fields, now_ns) for part, fields in devices if fields]
            if configured:
                totals |= sums([fields for _part, fields in devices])
        vm = Sample("vm", self._own, self._guest(guest, layout, now_ns), now_ns)
        if vm.fields.get("state_code") == _RUNNING:
            vm.fields.update(tick.usage(vm.fields, layout))
            vm.fields.update(tick.totals(totals))
        return [vm, *found, *self._filesystems(guest, now_ns), *self._knob_samples(guest, leased, now_ns)]

    def _know(self, guest: GuestStats) -> bool:
        """Return whether the guest has other tags or another name than before."""
        if self._of is not None and self._of[0] == guest.name and self._of[1] == guest.tags:
            return False
        self._of = (guest.name, guest.tags)
        self._own = {**guest.tags, **self._tags, "vm": guest.uuid, "name": guest.name}
        self._knobs.clear()
        return True

    def _laid_out(self, stats: Stats, *, renamed: bool) -> tuple[Layout, bool]:
        """Return the layout, and whether its devices are those of the tick before."""
        before, layout = self._before, self._layout
        if layout is not None and not renamed and _alike(stats, before, layout):
            return layout, True
        fresh = self._layout = layout_of(stats, self._own)
        same = layout is not None and _labels(layout) == _labels(fresh)
        return fresh, same

    def _elapsed_s(self, run: int, now_ns: int) -> float:
        """Return the seconds since the last tick; 0 where counters cannot be compared, as those of another run."""
        elapsed_ns = now_ns - self._before_ns
        comparable = run == self._run and MIN_ELAPSED_NS <= elapsed_ns <= MAX_ELAPSED_NS
        return elapsed_ns / SECOND if comparable else 0.0

    def _guest(self, guest: GuestStats, layout: Layout, now_ns: int) -> Fields:
        fields = _read(guest.stats, layout.guest)
        fields["age_seconds"] = guest.age_s
        fields.update(guest.details.guest)
        updated_s = number(guest.stats.get("balloon.last-update"))
        if updated_s:
            fields["memory_stats_age_seconds"] = max(now_ns / SECOND - updated_s, 0.0)
        return fields

    def _filesystems(self, guest: GuestStats, now_ns: int) -> Iterator[Sample]:
        for mountpoint, numbers in guest.details.filesystems.items():
            yield Sample("vm_filesystem", {**self._own, "mountpoint": mountpoint}, dict(numbers), now_ns)

    def _knob_samples(self, guest: GuestStats, leased: Mapping[str, int], now_ns: int) -> Iterator[Sample]:
        for knob, value in guest.knobs.items():
            tags = self._knobs.get(knob)
            if tags is None:
                tags = self._knobs[knob] = {**self._own, "knob": knob}
            yield Sample("knob", tags, {"value_count": value, "leased_count": leased.get(knob, 0)}, now_ns)


class _Tick:
    """One tick's statistics beside those of the tick before, `elapsed_s` seconds ago."""

    def __init__(self, stats: Stats, before: Stats, elapsed_s: float, same_devices: bool) -> None:
        self._stats = stats
        self._before = before
        self._elapsed_s = elapsed_s
        self._same_devices = same_devices
        self._spent: dict[str, tuple[float, float]] = {}

    def device(self, part: Part, configured: Mapping[str, int | float] | None, totals: Fields) -> Fields:
        """Return a disk's or NIC's fields, limits and rates; adds to the guest's totals."""
        fields = _read(self._stats, part)
        if self._elapsed_s and self._same_devices:
            for key, field, total in part.rates:
                grown = self._grown(key)
                if grown is not None:
                    fields[field] = rate = grown / self._elapsed_s
                    totals[total] = totals.get(total, 0.0) + rate
            for spent_key, requests_key, field, total in part.times:
                spent, requests = self._grown(spent_key), self._grown(requests_key)
                if spent is not None and requests:
                    fields[field] = spent * NS / requests
                    all_spent, all_requests = self._spent.get(total, (0, 0))
                    self._spent[total] = (all_spent + spent, all_requests + requests)
        if configured:
            fields.update(configured)
            fields.update(limits.used(fields))
        return fields

    def usage(self, fields: Fields, layout: Layout) -> Fields:
        """Return ratios of what a running guest's vCPUs used and lacked, per online vCPU."""
        found: Fields = {}
        vcpus = int(fields.get("vcpus_count", 0))
        if vcpus <= 0:
            return found
        if self._elapsed_s:
            used = self._grown("cpu.time")
            if used is not None:
                # QEMU's own threads count too: a guest can use more than its vCPUs.
                found["cpu_usage_ratio"] = used * NS / self._elapsed_s / vcpus
            delays = [grown for key in layout.delays if (grown := self._grown(key)) is not None]
            if delays:
                found["cpu_steal_ratio"] = min(sum(delays) * NS / self._elapsed_s / vcpus, 1.0)
        usable, available = fields.get("memory_usable_bytes"), fields.get("memory_available_bytes")
        if usable is not None and available:
            found["memory_used_ratio"] = min(max(1 - usable / available, 0.0), 1.0)
        return found

    def totals(self, totals: Fields) -> Fields:
        """Return the totals of the devices with the times per request over all of them."""
        return totals | {total: spent * NS / requests for total, (spent, requests) in self._spent.items()}

    def _grown(self, key: str) -> int | float | None:
        """Return by how much a counter has grown; None for a first reading, or one that was reset."""
        now, before = self._stats.get(key), self._before.get(key)
        if now.__class__ is int and before.__class__ is int and 0 <= before <= now < _MAX:  # nearly always
            return now - before
        now, before = number(now), number(before)
        return None if now is None or before is None or now < before else now - before


def _read(stats: Stats, part: Part) -> Fields:
    found: Fields = {}
    for key, field in part.plain:
        value = stats[key]
        if (value.__class__ is int and 0 <= value < _MAX) or number(value) is not None:
            found[field] = value
    for key, field, factor in part.scaled:
        value = stats[key]
        if (value.__class__ is int and 0 <= value < _MAX) or number(value) is not None:
            found[field] = value * factor
    for key, field in part.flags:
        if isinstance(stats[key], bool):
            found[field] = int(stats[key])
    return found


def number(value: object) -> int | float | None:
    """Return a number that can be one of libvirt's counts; anything else is absent."""
    if value.__class__ is int or value.__class__ is float:
        return value if 0 <= value < _MAX else None
    return None


def _alike(stats: Stats, before: Stats, layout: Layout) -> bool:
    return stats.keys() == before.keys() and all(stats[key] == before[key] for key in layout.names)


def _labels(layout: Layout) -> list[tuple[str, str]]:
    return [(part.measurement, part.label) for part in (*layout.disks, *layout.nics)]
