"""Configured limits of disks and NICs beside their use: how much of them is used, and a guest's sums of them."""

from __future__ import annotations

import math
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
# the guest's field → the limits of a disk, or the limit of a NIC, that it sums up
_DISKS: Final = {
    f"disks_limit_{what}_per_second": tuple(f"{way}_limit_{what}_per_second" for way in ("total", "read", "write"))
    for what in ("bytes", "requests")
}
_NICS: Final = {
    f"nics_{limit}": limit for limit in ("receive_limit_bytes_per_second", "transmit_limit_bytes_per_second")
}


def add_used(fields: Fields, limits: Numbers) -> None:
    """Add how much of the most used limit a device uses: nothing without a limit, or while a rate is not known."""
    most = -1.0
    for limit, most_allowed in limits.items():
        rates = [fields.get(rate, math.nan) for rate in _BOUNDS.get(limit, ())]
        if rates and most_allowed:
            most = max(most, sum(rates) / most_allowed)
    if most >= 0:
        fields["limit_used_ratio"] = most


def add_disks(guest: Fields, devices: Sequence[Numbers]) -> None:
    """Add a guest's limits over all of its disks, and the use of the most used one."""
    _add_most_used(guest, "disks_limit_used_ratio", devices)
    for field, limits in _DISKS.items():
        own = [_either_way(device, *limits) for device in devices]
        if all(own):
            guest[field] = sum(own)


def add_nics(guest: Fields, devices: Sequence[Numbers]) -> None:
    """Add a guest's limits over all of its NICs, and the use of the most used one."""
    _add_most_used(guest, "nics_limit_used_ratio", devices)
    for field, limit in _NICS.items():
        own = [device.get(limit, 0) for device in devices]
        if all(own):
            guest[field] = sum(own)


def _either_way(device: Numbers, both: str, read: str, write: str) -> int | float:
    """Return what a disk may do in all, 0 where one way has no bound."""
    total = device.get(both, 0)
    if total:
        return total
    reads, writes = device.get(read, 0), device.get(write, 0)
    return reads + writes if reads and writes else 0


def _add_most_used(guest: Fields, field: str, devices: Iterable[Numbers]) -> None:
    ratios = [device["limit_used_ratio"] for device in devices if "limit_used_ratio" in device]
    if ratios:
        guest[field] = max(ratios)
