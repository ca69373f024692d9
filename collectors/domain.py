"""Guests: libvirt's bulk statistics as samples (virConnectGetAllDomainStats). Absent is absent, never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, Final, Protocol

from virtpilot.clock import SECOND
from virtpilot.collectors import limits
from virtpilot.collectors.layout import NS, Layout, Part, Stats
from virtpilot.collectors.rates import MAX_ELAPSED_NS, MIN_ELAPSED_NS
from virtpilot.collectors.reading import RUNNING, Fields, Read, Reader, number, reader_of
from virtpilot.hypervisor import GuestStats
from virtpilot.model import Sample

ByDevice = Mapping[str, Mapping[str, int | float]]

_DEVICES: Final = ("block.", "net.")  # how counters of devices are named
# (virDomainState, its reason) of a guest that another host tells of: one that comes in or goes out by a migration
# (paused: migration, starting up, post-copy), and the definition that a migration has left behind (shut off: migrated).
_ELSEWHERE: Final = frozenset({(3, 2), (3, 11), (3, 12), (5, 4)})


class IsLeased(Protocol):
    """Tells whether virtpilot holds a knob of a guest just now."""

    def __call__(self, guest: str, knob: str) -> bool:
        """Return True while a lease is alive."""


def lives_here(guest: GuestStats) -> bool:
    """Return whether a guest is this host's to tell of: during a migration both hosts list it."""
    return (guest.stats.get("state.state"), guest.stats.get("state.reason")) not in _ELSEWHERE


class Meter:
    """One guest, tick by tick: what it was told with last time, and where its fields are."""

    def __init__(self, tags: Mapping[str, str], leased: IsLeased) -> None:
        self._tags = tags
        self._leased = leased
        self._of: tuple[str, Mapping[str, str]] | None = None
        self._own: dict[str, str] = {}
        self._part_tags: list[dict[str, str]] = []
        self._knobs: dict[str, tuple[dict[str, str], Fields]] = {}
        self._reader: Reader | None = None
        self._names: tuple[Any, ...] = ()
        self._labels: list[tuple[str, str, str]] = []
        self._before: tuple[Any, ...] = ()
        self._before_ns = 0
        self._run = 0

    def samples(self, guest: GuestStats, now_ns: int) -> list[Sample]:
        """Return the guest's samples: itself, its vCPUs, I/O threads, disks, NICs, file systems and knobs."""
        reader = self._reader_of(guest)
        layout = reader.layout
        read = reader.read(guest.stats, self._before, self._elapsed_s(guest.run, now_ns))
        self._before, self._before_ns, self._run = read.counters, now_ns, guest.run
        own, *parts = read.fields
        self._complete(own, guest, now_ns)
        totals = own if own.get("state_code") == RUNNING else {}
        _add_usage(totals, layout, read.rates)
        self._add_of_devices(totals, guest, layout, read)
        found = [Sample("vm", self._own, own, now_ns)]
        for part, tags, fields in zip(layout.parts, self._part_tags, parts, strict=True):
            if fields:
                found.append(Sample(part.measurement, tags, fields, now_ns))
        for mountpoint, numbers in guest.details.filesystems.items():
            found.append(Sample("vm_filesystem", {**self._own, "mountpoint": mountpoint}, dict(numbers), now_ns))
        for knob, value in guest.knobs.items():
            found.append(Sample("knob", *self._knob(guest.uuid, knob, value), now_ns))
        return found

    def _reader_of(self, guest: GuestStats) -> Reader:
        """Return what reads the guest, as it is told of now."""
        renamed = self._of is None or self._of[0] != guest.name or self._of[1] != guest.tags
        if renamed:
            self._of = (guest.name, guest.tags)
            self._own = {**guest.tags, **self._tags, "vm": guest.uuid, "name": guest.name}
            self._knobs.clear()
        stats, reader = guest.stats, self._reader
        told = tuple(stats)
        if reader is None or renamed or reader.layout.told != told or reader.layout.names(stats) != self._names:
            reader = self._reader = self._take(reader_of(told), stats)
        return reader

    def _take(self, fresh: Reader, stats: Stats) -> Reader:
        """Take another reader: counters that were there before go on, those of devices where all are the same."""
        layout = fresh.layout
        labels = [(part.measurement, part.number, part.label(stats)) for part in (*layout.disks, *layout.nics)]
        before: dict[str, Any] = {}
        if self._reader is not None:
            former = self._reader.layout
            before = dict(zip([former.numbers[place] for place in former.counters], self._before, strict=True))
        if labels != self._labels:
            before = {key: value for key, value in before.items() if not key.startswith(_DEVICES)}
        self._before = tuple([before.get(layout.numbers[place], nan) for place in layout.counters])
        self._labels, self._names = labels, layout.names(stats)
        self._part_tags = [
            {**self._own, part.tag: part.label(stats)} if part.tag else self._own for part in layout.parts
        ]
        return fresh

    def _elapsed_s(self, run: int, now_ns: int) -> float:
        """Return the seconds since the last tick; 0 where counters cannot be compared, as those of another run."""
        elapsed_ns = now_ns - self._before_ns
        comparable = run == self._run and MIN_ELAPSED_NS <= elapsed_ns <= MAX_ELAPSED_NS
        return elapsed_ns / SECOND if comparable else 0.0

    def _complete(self, fields: Fields, guest: GuestStats, now_ns: int) -> None:
        """Add to the guest's own fields what is known of it beside its numbers."""
        fields["age_seconds"] = guest.age_s
        fields.update(guest.details.guest)
        updated_s = number(guest.stats.get("balloon.last-update"))
        if updated_s:
            fields["memory_stats_age_seconds"] = max(now_ns / SECOND - updated_s, 0.0)

    def _knob(self, guest: str, knob: str, value: int) -> tuple[dict[str, str], Fields]:
        """Return a knob's tags and fields: those of the tick before, where nothing has changed."""
        leased = int(self._leased(guest, knob))
        known = self._knobs.get(knob)
        if known is None or known[1]["value_count"] != value or known[1]["leased_count"] != leased:
            known = {**self._own, "knob": knob}, {"value_count": value, "leased_count": leased}
            self._knobs[knob] = known
        return known

    def _add_of_devices(self, totals: Fields, guest: GuestStats, layout: Layout, read: Read) -> None:
        """Add to disks and NICs what their requests took and their limits, and to the totals what that comes to."""
        details, first = guest.details, 1 + len(layout.others)
        disks = read.fields[first : first + len(layout.disks)]
        _add_times(totals, layout.disks, disks, read.rates)
        if details.disks:
            _limit(disks, layout.disks, details.disks, guest.stats)
            limits.add_disks(totals, disks)
        if details.nics:
            nics = read.fields[first + len(layout.disks) :]
            _limit(nics, layout.nics, details.nics, guest.stats)
            limits.add_nics(totals, nics)


def _add_times(totals: Fields, disks: Sequence[Part], fields: Sequence[Fields], rates: Sequence[float]) -> None:
    """Add the time per request, of each disk and over all of them."""
    sums: dict[str, tuple[float, float]] = {}
    for disk, own in zip(disks, fields, strict=True):
        for spent_at, requests_at, field, total in disk.times:
            spent, requests = rates[spent_at], rates[requests_at]
            if requests > 0 and spent >= 0:
                own[field] = spent * NS / requests
                all_spent, all_requests = sums.get(total, (0.0, 0.0))
                sums[total] = (all_spent + spent, all_requests + requests)
    for total, (all_spent, all_requests) in sums.items():
        totals[total] = all_spent * NS / all_requests


def _limit(fields: Sequence[Fields], parts: Sequence[Part], configured: ByDevice, stats: Stats) -> None:
    """Add to devices what is configured for them, and how much of it they use."""
    for part, own in zip(parts, fields, strict=True):
        limit = configured.get(part.label(stats))
        if limit:
            own.update(limit)
            limits.add_used(own, limit)


def _add_usage(fields: Fields, layout: Layout, rates: Sequence[float]) -> None:
    """Add ratios of what a running guest's vCPUs used and lacked, per online vCPU, and of its memory."""
    vcpus = int(fields.get("vcpus_count", 0))
    if vcpus <= 0:
        return
    if layout.cpu and rates[0] >= 0:
        # QEMU's own threads count too: a guest can use more than its vCPUs.
        fields["cpu_usage_ratio"] = rates[0] * NS / vcpus
    delays = [delay for delay in rates[layout.cpu : layout.delays] if delay >= 0]
    if delays:
        fields["cpu_steal_ratio"] = min(sum(delays) * NS / vcpus, 1.0)
    usable, available = fields.get("memory_usable_bytes"), fields.get("memory_available_bytes")
    if usable is not None and available:
        fields["memory_used_ratio"] = min(max(1 - usable / available, 0.0), 1.0)
