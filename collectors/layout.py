"""Where each field of a guest is found in what libvirt tells of it: worked out once, used tick after tick."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from sys import intern
from typing import Any, Final, NamedTuple, TypeVar

from virtpilot.guest_fields import PERF_COUNTERS

One = TypeVar("One")
NS: Final = 1e-9
KIB: Final = 1024
_MAX_DEVICES: Final = 512
_DEVICE: Final = re.compile(r"(vcpu|block|net|iothread)\.(\d{1,6})\.(.+)")

Plain = tuple[tuple[str, str], ...]
Scaled = tuple[tuple[str, str, float], ...]
# libvirt's name → our field and what turns its unit into ours.
Names = Mapping[str, tuple[str, float]]
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
}
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
    **{name: (f"{name}_total", 1.0) for name in PERF_COUNTERS},
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
_NAMED: Final = {"vcpu": ("vm_vcpu", "vcpu"), "iothread": ("vm_iothread", "iothread")}


class Rate(NamedTuple):
    """A counter's key, the field of its rate, and the guest's field that sums it up."""

    key: str
    field: str
    total: str


class Time(NamedTuple):
    """The keys of time spent and of requests, the field of the time per request, and the guest's one."""

    spent: str
    requests: str
    field: str
    total: str


class Part(NamedTuple):
    """One sample to be: its tags, and the keys to read, those `scaled` with a factor; `label` names the device."""

    measurement: str
    tags: dict[str, str]
    label: str
    plain: Plain
    scaled: Scaled
    flags: Plain = ()
    rates: tuple[Rate, ...] = ()
    times: tuple[Time, ...] = ()


class Layout(NamedTuple):
    """A guest's parts; `names` are the keys of the devices' names, whose values the parts' tags have."""

    guest: Part
    others: tuple[Part, ...]
    disks: tuple[Part, ...]
    nics: tuple[Part, ...]
    delays: tuple[str, ...]
    names: tuple[str, ...]


def layout_of(stats: Mapping[str, Any], own: dict[str, str]) -> Layout:
    """Return where the fields of a guest with these statistics are; vCPUs that are offline leave gaps."""
    devices = _devices(stats)
    others = [
        _part(stats, measurement, f"{kind}.{index}.", {**own, tag: str(index)}, names)
        for kind, names in (("vcpu", _VCPU), ("iothread", _IOTHREAD))
        for measurement, tag in (_NAMED[kind],)
        for index in devices[kind]
    ]
    others.append(_part(stats, "vm_perf", "perf.", own, _PERF))
    return Layout(
        _part(stats, "vm", "", own, _VM),
        tuple(others),
        tuple(_disk(stats, index, own) for index in devices["block"]),
        tuple(_nic(stats, index, own) for index in devices["net"]),
        tuple(key for index in devices["vcpu"] if (key := f"vcpu.{index}.delay") in stats),
        tuple(key for kind in ("block", "net") for index in devices[kind] if (key := f"{kind}.{index}.name") in stats),
    )


def _devices(stats: Mapping[str, Any]) -> dict[str, list[int]]:
    found: defaultdict[str, set[int]] = defaultdict(set)
    for match in map(_DEVICE.fullmatch, stats):
        if match is not None and len(found[match[1]]) < _MAX_DEVICES:
            found[match[1]].add(int(match[2]))
    return {kind: sorted(found[kind]) for kind in ("vcpu", "iothread", "block", "net")}


def _part(stats: Mapping[str, Any], measurement: str, prefix: str, tags: dict[str, str], names: Names) -> Part:
    there = tuple((name, *names[name]) for name in names if prefix + name in stats)
    halted = names is _VCPU and f"{prefix}halted" in stats
    return Part(measurement, tags, "", *_keys(prefix, there, halted))


@lru_cache(maxsize=4096)
def _keys(prefix: str, there: tuple[tuple[str, str, float], ...], halted: bool) -> tuple[Plain, Scaled, Plain]:
    """Return a part's keys: the same ones for all guests, as texts that the statistics have."""
    keys = [(intern(prefix + name), field, factor) for name, field, factor in there]
    return (
        tuple((key, field) for key, field, factor in keys if factor == 1),
        tuple(one for one in keys if one[2] != 1),
        ((f"{prefix}halted", "halted_count"),) if halted else (),
    )


def _shared(items: Iterable[One]) -> tuple[One, ...]:
    return _one_of_equals(tuple(items))


@lru_cache(maxsize=4096)
def _one_of_equals(items: tuple[One, ...]) -> tuple[One, ...]:
    return items


def _disk(stats: Mapping[str, Any], index: int, own: dict[str, str]) -> Part:
    prefix = f"block.{index}."
    label = _label(stats, prefix, index)
    times = (
        Time(intern(prefix + spent), intern(prefix + requests), field, intern(f"disks_{field}"))
        for (spent, requests), field in _DISK_TIMES.items()
        if prefix + spent in stats and prefix + requests in stats
    )
    return _part(stats, "vm_disk", prefix, {**own, "disk": label}, _DISK)._replace(
        label=label, rates=_shared(_rates(stats, prefix, _DISK_RATES, "disks")), times=_shared(times)
    )


def _nic(stats: Mapping[str, Any], index: int, own: dict[str, str]) -> Part:
    prefix = f"net.{index}."
    label = _label(stats, prefix, index)
    return _part(stats, "vm_net", prefix, {**own, "nic": label}, _NET)._replace(
        label=label, rates=_shared(_rates(stats, prefix, _NET_RATES, "nics"))
    )


def _rates(stats: Mapping[str, Any], prefix: str, names: Mapping[str, str], kind: str) -> Iterator[Rate]:
    for name, field in names.items():
        if prefix + name in stats:
            yield Rate(intern(prefix + name), field, intern(f"{kind}_{field}"))


def _label(stats: Mapping[str, Any], prefix: str, index: int) -> str:
    name = stats.get(f"{prefix}name")
    return name if isinstance(name, str) and name else str(index)
