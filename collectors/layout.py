"""Where each field of a guest is found in what libvirt tells of it: worked out once, used tick after tick."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from sys import intern
from typing import Any, Final, NamedTuple

from virtpilot.guest_fields import PERF_COUNTERS

NS: Final = 1e-9
KIB: Final = 1024
_MAX_DEVICES: Final = 512
_DEVICE: Final = re.compile(r"(vcpu|block|net|iothread)\.(\d{1,6})\.(.+)")

Stats = Mapping[str, Any]
# Takes some of the items out of a mapping or a sequence.
Take = Callable[[Any], tuple[Any, ...]]
# libvirt's name → our field and what turns its unit into ours.
Names = Mapping[str, tuple[str, int | float]]
_VM: Final[Names] = {
    "state.state": ("state_code", 1),
    "state.reason": ("state_reason_code", 1),
    "cpu.time": ("cpu_time_seconds_total", NS),
    "cpu.user": ("cpu_user_seconds_total", NS),
    "cpu.system": ("cpu_system_seconds_total", NS),
    "cpu.haltpoll.success.time": ("cpu_halt_poll_success_seconds_total", NS),
    "cpu.haltpoll.fail.time": ("cpu_halt_poll_fail_seconds_total", NS),
    "vcpu.current": ("vcpus_count", 1),
    "vcpu.maximum": ("vcpus_max_count", 1),
    "balloon.current": ("memory_balloon_bytes", KIB),
    "balloon.maximum": ("memory_max_bytes", KIB),
    "balloon.usable": ("memory_usable_bytes", KIB),
    "balloon.unused": ("memory_unused_bytes", KIB),
    "balloon.available": ("memory_available_bytes", KIB),
    "balloon.disk_caches": ("memory_disk_caches_bytes", KIB),
    "balloon.rss": ("memory_rss_bytes", KIB),
    "balloon.swap_in": ("swap_in_bytes_total", KIB),
    "balloon.swap_out": ("swap_out_bytes_total", KIB),
    "balloon.major_fault": ("major_faults_total", 1),
    "balloon.minor_fault": ("minor_faults_total", 1),
    "balloon.hugetlb_pgalloc": ("hugepage_allocations_total", 1),
    "balloon.hugetlb_pgfail": ("hugepage_failures_total", 1),
}
_VCPU: Final[Names] = {
    "state": ("state_code", 1),
    "time": ("time_seconds_total", NS),
    "wait": ("wait_seconds_total", NS),
    "delay": ("delay_seconds_total", NS),
    "halted": ("halted_count", 1),
}
_NAMED: Final = ("disk", "nic")  # devices that libvirt tells a name of

_DISK: Final[Names] = {
    "rd.reqs": ("read_requests_total", 1),
    "rd.bytes": ("read_bytes_total", 1),
    "rd.times": ("read_seconds_total", NS),
    "wr.reqs": ("write_requests_total", 1),
    "wr.bytes": ("write_bytes_total", 1),
    "wr.times": ("write_seconds_total", NS),
    "fl.reqs": ("flush_requests_total", 1),
    "fl.times": ("flush_seconds_total", NS),
    "errors": ("errors_total", 1),
    "allocation": ("allocation_bytes", 1),
    "capacity": ("capacity_bytes", 1),
    "physical": ("physical_bytes", 1),
    "threshold": ("threshold_bytes", 1),
}
_NET: Final[Names] = {
    f"{short}.{name}": (f"{long}_{field}_total", 1)
    for short, long in (("rx", "receive"), ("tx", "transmit"))
    for name, field in (("bytes", "bytes"), ("pkts", "packets"), ("errs", "errors"), ("drop", "drops"))
}
_IOTHREAD: Final[Names] = {
    "poll-max-ns": ("poll_max_seconds", NS),
    "poll-grow": ("poll_grow_count", 1),
    "poll-shrink": ("poll_shrink_count", 1),
}
_PERF: Final[Names] = {
    "cmt": ("cache_occupancy_bytes", 1),
    "mbmt": ("memory_traffic_total", 1),
    "mbml": ("memory_traffic_local_total", 1),
    "cpu_clock": ("cpu_clock_seconds_total", NS),
    "task_clock": ("task_clock_seconds_total", NS),
    "page_faults_min": ("page_faults_minor_total", 1),
    "page_faults_maj": ("page_faults_major_total", 1),
    **{name: (f"{name}_total", 1) for name in PERF_COUNTERS},
}
# libvirt's counter → the field of its rate; the guest's total of it has the prefix of the kind before its name.
_DISK_RATES: Final = {
    "rd.bytes": "read_bytes_per_second",
    "wr.bytes": "write_bytes_per_second",
    "rd.reqs": "read_requests_per_second",
    "wr.reqs": "write_requests_per_second",
    "fl.reqs": "flush_requests_per_second",
}
_NET_RATES: Final = {
    "rx.bytes": "receive_bytes_per_second",
    "tx.bytes": "transmit_bytes_per_second",
    "rx.pkts": "receive_packets_per_second",
    "tx.pkts": "transmit_packets_per_second",
    "rx.drop": "receive_drops_per_second",
    "tx.drop": "transmit_drops_per_second",
}
# (time spent, requests) → the field of the time per request.
_DISK_TIMES: Final = {
    ("rd.times", "rd.reqs"): "read_latency_seconds",
    ("wr.times", "wr.reqs"): "write_latency_seconds",
    ("fl.times", "fl.reqs"): "flush_latency_seconds",
}


class Time(NamedTuple):
    """Where among all rates those of time spent and of requests are; the field of the time per request, the guest's."""

    spent: int
    requests: int
    field: str
    total: str


class Part(NamedTuple):
    """One sample to be: the `places` of its `fields` among all of the guest's values.

    A device has a `tag` with its name, which the statistics tell under `named`, or else its `number`.
    """

    measurement: str
    fields: tuple[str, ...]
    places: tuple[int, ...] = ()
    tag: str = ""
    number: str = ""
    named: str = ""
    times: tuple[Time, ...] = ()

    def label(self, stats: Stats) -> str:
        """Return what the device is called."""
        name = stats.get(self.named)
        return name if isinstance(name, str) and name else self.number


class Layout(NamedTuple):
    """Where the values of all guests are that are `told` of under the same names.

    A guest's values are its `numbers`, then those `scaled` into our units (which number, by what), then the rates of
    its `counters` (which numbers): the CPU's where `cpu` is 1, the vCPUs' delays up to `delays`, the devices'. `totals`
    are the guest's fields that add up rates of its devices.
    """

    told: tuple[str, ...]
    numbers: tuple[str, ...]
    scaled: tuple[tuple[int, int | float], ...]
    counters: tuple[int, ...]
    cpu: int
    delays: int
    totals: Mapping[str, tuple[int, ...]]
    names: Take
    guest: Part
    others: tuple[Part, ...]
    disks: tuple[Part, ...]
    nics: tuple[Part, ...]
    parts: tuple[Part, ...]


def layout_of(told: tuple[str, ...]) -> Layout:
    """Return where the values of a guest are that is told of so; vCPUs that are offline leave gaps."""
    return _Drawing(told).layout()


# Where a value is: among the numbers, the scaled ones or the rates, and there in which place.
_Place = tuple[int, int]
_NUMBER, _SCALED, _RATE = 0, 1, 2
_Draft = tuple[Part, list[_Place]]


class _Drawing:
    """A layout that is being worked out: a place in all values is known once all parts are."""

    def __init__(self, told: tuple[str, ...]) -> None:
        self._told = tuple(map(intern, told))
        self._there = frozenset(self._told)
        self._numbers: list[str] = []
        self._scaled: list[tuple[int, int | float]] = []
        self._counted: dict[str, int] = {}
        self._totals: dict[str, list[int]] = {}

    def layout(self) -> Layout:
        """Return it whole."""
        devices = _devices(self._told)
        cpu = self._count("", ["cpu.time"])
        delays = self._count("vcpu.", [f"{index}.delay" for index in devices["vcpu"]])
        guest = self._part("vm", "", _VM)
        others = [self._device("vm_vcpu", "vcpu", f"vcpu.{index}.", _VCPU) for index in devices["vcpu"]]
        others += [
            self._device("vm_iothread", "iothread", f"iothread.{index}.", _IOTHREAD) for index in devices["iothread"]
        ]
        perf = self._part("vm_perf", "perf.", _PERF)
        others += [perf] if perf[1] else []
        disks = [self._disk(f"block.{index}.") for index in devices["block"]]
        nics = [self._nic(f"net.{index}.") for index in devices["net"]]
        parts = self._placed([guest, *others, *disks, *nics])
        first_disk, first_nic = 1 + len(others), 1 + len(others) + len(disks)
        return Layout(
            told=self._told,
            numbers=tuple(self._numbers),
            scaled=tuple(self._scaled),
            counters=tuple([self._numbers.index(key) for key in self._counted]),
            cpu=cpu.stop,
            delays=delays.stop,
            totals={total: tuple(places) for total, places in self._totals.items()},
            names=_take([part.named for part in parts if part.named]),
            guest=parts[0],
            others=parts[1:first_disk],
            disks=parts[first_disk:first_nic],
            nics=parts[first_nic:],
            parts=parts[1:],
        )

    def _placed(self, drafts: list[_Draft]) -> tuple[Part, ...]:
        begins = (0, len(self._numbers), len(self._numbers) + len(self._scaled))
        return tuple(
            part._replace(places=tuple(begins[kind] + place for kind, place in places)) for part, places in drafts
        )

    def _part(self, measurement: str, prefix: str, names: Names) -> _Draft:
        fields, places = [], []
        for name, (field, factor) in names.items():
            if prefix + name in self._there:
                fields.append(field)
                places.append(self._number(intern(prefix + name), factor))
        return Part(measurement, tuple(fields)), places

    def _number(self, key: str, factor: float) -> _Place:
        self._numbers.append(key)
        if factor == 1:
            return _NUMBER, len(self._numbers) - 1
        self._scaled.append((len(self._numbers) - 1, factor))
        return _SCALED, len(self._scaled) - 1

    def _device(self, measurement: str, tag: str, prefix: str, names: Names) -> _Draft:
        part, places = self._part(measurement, prefix, names)
        named = f"{prefix}name" if tag in _NAMED and f"{prefix}name" in self._there else ""
        return part._replace(tag=tag, number=prefix.split(".")[1], named=named), places

    def _disk(self, prefix: str) -> _Draft:
        part, places = self._rated(self._device("vm_disk", "disk", prefix, _DISK), prefix, _DISK_RATES)
        times = []
        for (spent, requests), field in _DISK_TIMES.items():
            keys = [prefix + spent, prefix + requests]
            if self._there.issuperset(keys):
                self._count("", keys)
                spent_at, requests_at = [self._counted[key] for key in keys]
                times.append(Time(spent_at, requests_at, field, f"disks_{field}"))
        return part._replace(times=tuple(times)), places

    def _nic(self, prefix: str) -> _Draft:
        return self._rated(self._device("vm_net", "nic", prefix, _NET), prefix, _NET_RATES)

    def _rated(self, draft: _Draft, prefix: str, rates: Mapping[str, str]) -> _Draft:
        """Return a device's part with its rates, which add to the guest's totals."""
        part, places = draft
        there = {name: field for name, field in rates.items() if prefix + name in self._there}
        counters = self._count(prefix, there)
        for field, place in zip(there.values(), range(counters.start, counters.stop), strict=True):
            places.append((_RATE, place))
            self._totals.setdefault(f"{part.tag}s_{field}", []).append(place)
        return part._replace(fields=(*part.fields, *there.values())), places

    def _count(self, prefix: str, names: Iterable[str]) -> slice:
        """Return where the rates of these counters will be, of those that are there."""
        first = len(self._counted)
        for name in names:
            if prefix + name in self._there:
                self._counted.setdefault(intern(prefix + name), len(self._counted))
        return slice(first, len(self._counted))


def _devices(told: Iterable[str]) -> dict[str, list[int]]:
    found: defaultdict[str, set[int]] = defaultdict(set)
    for match in map(_DEVICE.fullmatch, told):
        if match is not None and len(found[match[1]]) < _MAX_DEVICES:
            found[match[1]].add(int(match[2]))
    return {kind: sorted(found[kind]) for kind in ("vcpu", "iothread", "block", "net")}


def _take(keys: Sequence[Any]) -> Take:
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda items: tuple([items[key] for key in keys])  # what itemgetter gives of one item is no tuple
