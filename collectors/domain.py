"""Guests: libvirt's bulk statistics as samples (virConnectGetAllDomainStats). Absent is absent, never 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from virtpilot.collectors.rates import Rates
from virtpilot.hypervisor import GuestStats
from virtpilot.model import Sample

Fields = dict[str, int | float]
Leased = Mapping[str, int]

_NS: Final = 1e-9
_KIB: Final = 1024
_RUNNING: Final = 1
# (virDomainState, its reason) of a guest that another host tells of: one that comes in or goes out by a migration
# (paused: migration, starting up, post-copy), and the definition that a migration has left behind (shut off: migrated).
_ELSEWHERE: Final = frozenset({(3, 2), (3, 11), (3, 12), (5, 4)})
_MAX_DEVICES: Final = 512

# libvirt's name → our field and what turns its unit into ours.
_VM: Final[dict[str, tuple[str, float]]] = {
    "state.state": ("state_code", 1),
    "cpu.time": ("cpu_time_seconds_total", _NS),
    "cpu.user": ("cpu_user_seconds_total", _NS),
    "cpu.system": ("cpu_system_seconds_total", _NS),
    "vcpu.current": ("vcpus_count", 1),
    "vcpu.maximum": ("vcpus_max_count", 1),
    "balloon.current": ("memory_balloon_bytes", _KIB),
    "balloon.maximum": ("memory_max_bytes", _KIB),
    "balloon.usable": ("memory_usable_bytes", _KIB),
    "balloon.unused": ("memory_unused_bytes", _KIB),
    "balloon.available": ("memory_available_bytes", _KIB),
    "balloon.rss": ("memory_rss_bytes", _KIB),
    "balloon.swap_in": ("swap_in_bytes_total", _KIB),
    "balloon.swap_out": ("swap_out_bytes_total", _KIB),
    "balloon.major_fault": ("major_faults_total", 1),
}
_VCPU: Final[dict[str, tuple[str, float]]] = {
    "state": ("state_code", 1),
    "time": ("time_seconds_total", _NS),
    "wait": ("wait_seconds_total", _NS),
    "delay": ("delay_seconds_total", _NS),
}
_DISK: Final[dict[str, tuple[str, float]]] = {
    "rd.reqs": ("read_requests_total", 1),
    "rd.bytes": ("read_bytes_total", 1),
    "rd.times": ("read_seconds_total", _NS),
    "wr.reqs": ("write_requests_total", 1),
    "wr.bytes": ("write_bytes_total", 1),
    "wr.times": ("write_seconds_total", _NS),
    "fl.reqs": ("flush_requests_total", 1),
    "fl.times": ("flush_seconds_total", _NS),
    "errors": ("errors_total", 1),
    "allocation": ("allocation_bytes", 1),
    "capacity": ("capacity_bytes", 1),
    "physical": ("physical_bytes", 1),
}
_NET: Final[dict[str, tuple[str, float]]] = {
    f"{short}.{name}": (f"{long}_{field}_total", 1)
    for short, long in (("rx", "receive"), ("tx", "transmit"))
    for name, field in (("bytes", "bytes"), ("pkts", "packets"), ("errs", "errors"), ("drop", "drops"))
}
_RATES: Final = {
    "vm_disk": {"read_bytes_total": "read_bytes_per_second", "write_bytes_total": "write_bytes_per_second"},
    "vm_net": {
        "receive_bytes_total": "receive_bytes_per_second",
        "transmit_bytes_total": "transmit_bytes_per_second",
    },
}


def lives_here(guest: GuestStats) -> bool:
    """Return whether a guest is this host's to tell of: during a migration both hosts list it."""
    return (guest.stats.get("state.state"), guest.stats.get("state.reason")) not in _ELSEWHERE


def parse(guest: GuestStats, tags: Mapping[str, str], leased: Leased, rates: Rates, now_ns: int) -> Iterator[Sample]:
    """Yield the samples of one guest: itself, its vCPUs, disks, NICs and knobs."""
    own = {**guest.tags, **tags, "vm": guest.uuid, "name": guest.name}
    stats = guest.stats
    # Counters of another run of the guest are others, even where they are larger.
    run = f"{guest.uuid} {guest.run}"
    fields = _read(stats, "", _VM)
    if fields.get("state_code") == _RUNNING:
        fields |= _usage(run, stats, fields, rates, now_ns)
    if fields:
        yield Sample("vm", own, fields, now_ns)
    for index in _indices(stats, "vcpu", int(number(stats.get("vcpu.maximum")) or 0)):
        yield from _device("vm_vcpu", {**own, "vcpu": str(index)}, _read(stats, f"vcpu.{index}.", _VCPU), now_ns)
    for measurement, prefix, tag, names in (("vm_disk", "block", "disk", _DISK), ("vm_net", "net", "nic", _NET)):
        for index in _indices(stats, prefix, int(number(stats.get(f"{prefix}.count")) or 0)):
            name = stats.get(f"{prefix}.{index}.name")
            found = _read(stats, f"{prefix}.{index}.", names)
            label = name if isinstance(name, str) and name else str(index)
            for counter, rate_name in _RATES[measurement].items():
                rate = rates.rate((run, prefix, label, counter), found[counter], now_ns) if counter in found else None
                if rate is not None:
                    found[rate_name] = rate
            yield from _device(measurement, {**own, tag: label}, found, now_ns)
    for knob, value in guest.knobs.items():
        yield Sample("knob", {**own, "knob": knob}, {"value_count": value, "leased_count": leased.get(knob, 0)}, now_ns)


def _device(measurement: str, tags: dict[str, str], fields: Fields, now_ns: int) -> Iterator[Sample]:
    if fields:
        yield Sample(measurement, tags, fields, now_ns)


def _usage(run: str, stats: Mapping[str, Any], fields: Fields, rates: Rates, now_ns: int) -> Fields:
    """Return ratios of what a running guest's vCPUs used and lacked, per online vCPU."""
    found: Fields = {}
    vcpus = int(fields.get("vcpus_count", 0))
    if vcpus <= 0:
        return found
    used = fields.get("cpu_time_seconds_total")
    rate = rates.rate((run, "cpu.time"), used, now_ns) if used is not None else None
    if rate is not None:
        # QEMU's own threads count too: a guest can use more than its vCPUs.
        found["cpu_usage_ratio"] = rate / vcpus
    delays = [
        rates.rate((run, "delay", str(index)), delay * _NS, now_ns)
        for index in _indices(stats, "vcpu", int(fields.get("vcpus_max_count", vcpus)))
        if (delay := number(stats.get(f"vcpu.{index}.delay"))) is not None
    ]
    known = [delay for delay in delays if delay is not None]
    if known:
        found["cpu_steal_ratio"] = min(sum(known) / vcpus, 1.0)
    usable, available = fields.get("memory_usable_bytes"), fields.get("memory_available_bytes")
    if usable is not None and available:
        found["memory_used_ratio"] = min(max(1 - usable / available, 0.0), 1.0)
    return found


def _read(stats: Mapping[str, Any], prefix: str, names: Mapping[str, tuple[str, float]]) -> Fields:
    found: Fields = {}
    for name, (field, factor) in names.items():
        value = number(stats.get(prefix + name))
        if value is not None:
            found[field] = value * factor
    return found


def number(value: object) -> int | float | None:
    """Return a number that can be one of libvirt's counts; anything else is absent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**64:
        return None
    return value


def _indices(stats: Mapping[str, Any], prefix: str, count: int) -> Iterator[int]:
    """Yield the device numbers that are there; vCPUs that are offline leave gaps."""
    for index in range(min(count, _MAX_DEVICES)):
        start = f"{prefix}.{index}."
        if any(start + name in stats for name in ("state", "time", "name", "rd.reqs", "rx.bytes")):
            yield index
