"""The host's whole disks from /proc/diskstats (Documentation/admin-guide/iostats.rst): no partitions, loops or RAM."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from virtpilot.collectors.number import counts
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
# counter → what its growth in a second tells; a disk's part of the host's sum
_RATES: Final = {
    "read_requests_total": "read_requests_per_second",
    "read_bytes_total": "read_bytes_per_second",
    "write_requests_total": "write_requests_per_second",
    "write_bytes_total": "write_bytes_per_second",
    "busy_seconds_total": "utilisation_ratio",
    "queued_seconds_total": "queue_count",
}
_TOTALS: Final = {name: f"disks_{name}" for name in _RATES.values() if name.endswith("_per_second")}
_NOT_DISKS: Final = re.compile(r"(loop|ram|zram|sr|fd|nbd)\d+|nvme\d+c\d+n\d+")
# Made of other disks: what they do is in those already.
_STACKED: Final = re.compile(r"(dm-|md|bcache|drbd)\d+")


def parse(text: str, wanted: Callable[[str], bool]) -> dict[str, Fields]:
    """Return the numbers of the wanted block devices by their names."""
    found: dict[str, Fields] = {}
    for line in text.splitlines():
        words = line.split(maxsplit=3)
        if len(words) < 4 or not wanted(words[2]):
            continue
        numbers = counts(words[3])
        if len(numbers) >= _LEAST:
            found[words[2]] = {
                name: numbers[column] * factor for column, (name, factor) in _FIELDS.items() if column < len(numbers)
            }
    return found


class Disks:
    """Collects disks; /sys, where the whole ones are, is looked at when there is one that was not there before."""

    def __init__(self) -> None:
        self._whole: dict[str, bool] = {}

    def __call__(self, look: Look) -> Found:
        """Return each disk, and of the host what its disks do together and how busy the busiest is."""
        names: list[str] | None = None
        there: dict[str, bool] = {}

        def is_whole(name: str) -> bool:
            nonlocal names
            whole = self._whole.get(name)
            if whole is None:
                names = look.tree.names("sys/block") if names is None else names
                whole = name.replace("/", "!") in names and not _NOT_DISKS.fullmatch(name)
            there[name] = whole
            return whole

        disks = parse(look.tree.read("proc/diskstats"), is_whole)
        self._whole = there
        fields: Fields = {}
        requests = seconds = 0.0
        for name, disk in disks.items():
            increases, elapsed_s = look.rates.grown(("disk", name), disk.copy(), look.now_ns)
            own = _rates(increases, elapsed_s)
            if not _STACKED.fullmatch(name):
                _add(fields, disk, own)
                requests += _both(increases, "requests")
                seconds += _both(increases, "seconds")
            disk.update(own)
        if requests > 0:
            fields["disks_latency_seconds"] = seconds / requests
        return Found(fields, [Device("host_disk", "disk", name, disk) for name, disk in disks.items()])


def _rates(increases: Mapping[str, float], elapsed_s: float) -> Fields:
    found: Fields = {}
    for counter, rate in _RATES.items():
        if counter in increases:
            found[rate] = increases[counter] / elapsed_s
    if "utilisation_ratio" in found:
        found["utilisation_ratio"] = min(found["utilisation_ratio"], 1.0)
    requests = _both(increases, "requests")
    if requests > 0:
        found["latency_seconds"] = _both(increases, "seconds") / requests
    return found


def _both(increases: Mapping[str, float], kind: str) -> float:
    return increases.get(f"read_{kind}_total", 0.0) + increases.get(f"write_{kind}_total", 0.0)


def _add(fields: Fields, disk: Fields, rates: Fields) -> None:
    """Add one disk to the host's fields."""
    for name, total in _TOTALS.items():
        if name in rates:
            fields[total] = fields.get(total, 0.0) + rates[name]
    fields["disks_in_flight_count"] = fields.get("disks_in_flight_count", 0) + disk.get("in_flight_count", 0)
    if "utilisation_ratio" in rates:
        busiest = max(fields.get("disks_utilisation_ratio", 0.0), rates["utilisation_ratio"])
        fields["disks_utilisation_ratio"] = busiest
