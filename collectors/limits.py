"""Configured limits of disks and NICs beside their use: how much of them is used, and a guest's sums of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

Numbers = Mapping[str, int | float]
Fields = dict[str, int | float]

# limit → the rates that it bounds together
_BOUNDS: Final = {
    f"{way}_limit_{what}_per_second": tuple(f"{one}_{what}_per_second" for one in ways)
    for way, ways in (
        ("read", ("read",)),
        ("write", ("write",)),
        ("total", ("read", "write")),
        ("receive", ("receive",)),
        ("transmit", ("transmit",)),
    )
    for what in ("bytes", "requests")
}
_EITHER_WAY: Final = {
    what: tuple(f"{way}_limit_{what}_per_second" for way in ("total", "read", "write"))
    for what in ("bytes", "requests")
}


def used(fields: Numbers) -> Fields:
    """Return how much of the most used limit a device uses: absent without a limit, or while a rate is not known."""
    ratios = []
    for limit in _BOUNDS.keys() & fields.keys():
        rates = [fields[rate] for rate in _BOUNDS[limit] if rate in fields]
        if fields[limit] and len(rates) == len(_BOUNDS[limit]):
            ratios.append(sum(rates) / fields[limit])
    return {"limit_used_ratio": max(ratios)} if ratios else {}


def disks(devices: Sequence[Numbers]) -> Fields:
    """Return a guest's limits over all of its disks, and the use of the most used one."""
    found = _most_used(devices, "disks_limit_used_ratio")
    for what in ("bytes", "requests"):
        own = [_either_way(device, what) for device in devices]
        if all(own):
            found[f"disks_limit_{what}_per_second"] = sum(own)
    return found


def nics(devices: Sequence[Numbers]) -> Fields:
    """Return a guest's limits over all of its NICs, and the use of the most used one."""
    found = _most_used(devices, "nics_limit_used_ratio")
    for way in ("receive", "transmit"):
        own = [device.get(f"{way}_limit_bytes_per_second", 0) for device in devices]
        if all(own):
            found[f"nics_{way}_limit_bytes_per_second"] = sum(own)
    return found


def _either_way(device: Numbers, what: str) -> int | float:
    """Return what a disk may do in all, 0 where one way has no bound."""
    limit, read_limit, write_limit = _EITHER_WAY[what]
    total = device.get(limit, 0)
    if total:
        return total
    read, write = device.get(read_limit, 0), device.get(write_limit, 0)
    return read + write if read and write else 0


def _most_used(devices: Iterable[Numbers], field: str) -> Fields:
    ratios = [device["limit_used_ratio"] for device in devices if "limit_used_ratio" in device]
    return {field: max(ratios)} if ratios else {}
