"""The host's whole disks from /proc/diskstats (Documentation/admin-guide/iostats.rst): no partitions, loops or RAM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from virtpilot.collectors.number import count
from virtpilot.collectors.rates import Rates
from virtpilot.collectors.source import Device, Fields, Found, Look

_SECTOR: Final = 512
_MS: Final = 1e-3
# Column of diskstats, counted after the name: our field and what turns its unit into ours.
_FIELDS: Final[dict[int, tuple[str, float]]] = {
    0: ("read_requests_total", 1),
    2: ("read_bytes_total", _SECTOR),
    3: ("read_seconds_total", _MS),
    4: ("write_requests_total", 1),
    6: ("write_bytes_total", _SECTOR),
    7: ("write_seconds_total", _MS),
    8: ("in_flight_count", 1),
    9: ("busy_seconds_total", _MS),
    10: ("queued_seconds_total", _MS),
    15: ("flush_requests_total", 1),
    16: ("flush_seconds_total", _MS),
}
_LEAST: Final = 11
_NOT_DISKS: Final = re.compile(r"(loop|ram|zram|sr|fd|nbd)\d+|nvme\d+c\d+n\d+")
# Made of other disks: what they do is in those already.
_STACKED: Final = re.compile(r"(dm-|md|bcache|drbd)\d+")


def parse(text: str, wanted: frozenset[str]) -> dict[str, Fields]:
    """Return the numbers of the wanted block devices by their names."""
    found: dict[str, Fields] = {}
    for line in text.splitlines():
        words = line.split(maxsplit=3)
        if len(words) < 4 or words[2] not in wanted:
            continue
        numbers = [count(word) for word in words[3].split()]
        if len(numbers) >= _LEAST:
            found[words[2]] = {
                name: value * factor
                for column, (name, factor) in _FIELDS.items()
                if column < len(numbers) and (value := numbers[column]) is not None
            }
    return found


def collect(look: Look) -> Found:
    """Return each disk, and of the host what its disks do together and how busy the busiest is."""
    names = look.tree.names("sys/block")
    whole = frozenset(name.replace("!", "/") for name in names if not _NOT_DISKS.fullmatch(name))
    disks = list(parse(look.tree.read("proc/diskstats"), whole).items())
    fields: Fields = {}
    sums = {"requests": 0.0, "seconds": 0.0}
    for name, disk in disks:
        increases = _increases(name, disk, look.rates, look.now_ns)
        own = _rates(increases)
        disk.update(own)
        if _STACKED.fullmatch(name):
            continue
        _add(fields, {f"disks_{rate}": value for rate, value in own.items() if rate.endswith("_per_second")})
        _add(fields, {"disks_in_flight_count": disk.get("in_flight_count", 0)})
        if "utilisation_ratio" in own:
            busiest = max(fields.get("disks_utilisation_ratio", 0.0), own["utilisation_ratio"])
            fields["disks_utilisation_ratio"] = busiest
        for kind in sums:
            sums[kind] += _both(increases, kind)
    if sums["requests"] > 0:
        fields["disks_latency_seconds"] = sums["seconds"] / sums["requests"]
    return Found(fields, [Device("host_disk", "disk", name, disk) for name, disk in disks])


def _increases(name: str, disk: Fields, rates: Rates, now_ns: int) -> dict[str, tuple[float, float]]:
    """Return (increase, seconds) of each counter since the last reading."""
    found = {}
    for field, value in disk.items():
        if field.endswith("_total"):
            delta = rates.delta(("disk", name, field), value, now_ns)
            if delta is not None:
                found[field] = delta
    return found


def _rates(increases: Mapping[str, tuple[float, float]]) -> Fields:
    found: Fields = {}
    for field in ("read_requests", "read_bytes", "write_requests", "write_bytes"):
        if f"{field}_total" in increases:
            increase, elapsed_s = increases[f"{field}_total"]
            found[f"{field}_per_second"] = increase / elapsed_s
    for field, ours in (("busy", "utilisation_ratio"), ("queued", "queue_count")):
        if f"{field}_seconds_total" in increases:
            increase, elapsed_s = increases[f"{field}_seconds_total"]
            found[ours] = increase / elapsed_s
    if "utilisation_ratio" in found:
        found["utilisation_ratio"] = min(found["utilisation_ratio"], 1.0)
    requests = _both(increases, "requests")
    if requests > 0:
        found["latency_seconds"] = _both(increases, "seconds") / requests
    return found


def _both(increases: Mapping[str, tuple[float, float]], kind: str) -> float:
    return sum(increases[f"{way}_{kind}_total"][0] for way in ("read", "write") if f"{way}_{kind}_total" in increases)


def _add(fields: Fields, more: Mapping[str, int | float]) -> None:
    for name, value in more.items():
        fields[name] = fields.get(name, 0) + value
