"""The host's NICs from /proc/net/dev and /sys/class/net: its own ones, not the guests' ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from virtpilot.clock import seconds
from virtpilot.collectors.number import count, counts
from virtpilot.collectors.source import Device, Fields, Found, Look
from virtpilot.collectors.tree import Tree

# Column of /proc/net/dev, counted after the name.
_FIELDS: Final = {
    0: "receive_bytes_total",
    1: "receive_packets_total",
    2: "receive_errors_total",
    3: "receive_drops_total",
    8: "transmit_bytes_total",
    9: "transmit_packets_total",
    10: "transmit_errors_total",
    11: "transmit_drops_total",
}
_RATES: Final = {field: f"{field.removesuffix('_total')}_per_second" for field in _FIELDS.values()}
_TOTALS: Final = {rate: f"nics_{rate}" for rate in _RATES.values()}
_COLUMNS: Final = 16
_NOT_OURS: Final = re.compile(r"lo|(vnet|tap|macvtap|veth|ifb|dummy)[^/]*")
_LINK_REFRESH_NS: Final = seconds(60)
_BITS: Final = 1_000_000 / 8  # the kernel tells speeds in Mbit/s


class Link(msgspec.Struct, frozen=True):
    """What hardly ever changes of a NIC: `physical` has a device of its own, `stacked` is made of other NICs."""

    speed_bytes_s: float | None = None
    physical: bool = False
    stacked: bool = False


def parse(text: str) -> dict[str, Fields]:
    """Return the numbers of the host's own interfaces by their names; a guest's end costs no more than its name."""
    found: dict[str, Fields] = {}
    for line in text.splitlines():
        name, separator, rest = line.rpartition(":")
        name = name.strip()
        if not separator or not name or _NOT_OURS.fullmatch(name):
            continue
        numbers = counts(rest)
        if len(numbers) >= _COLUMNS:
            found[name] = {field: numbers[column] for column, field in _FIELDS.items()}
    return found


class Nics:
    """Collects NICs; their links are looked at once a minute, since a driver may take long to tell its speed."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}
        self._asked_ns: int | None = None

    def __call__(self, look: Look) -> Found:
        """Return each NIC, and of the host what its NICs carry together and how full the fullest is."""
        nics = parse(look.tree.read("proc/net/dev"))
        self._refresh(look.tree, nics, look.now_ns)
        physical = any(self._links[name].physical for name in nics)
        fields: Fields = {}
        for name, nic in nics.items():
            link = self._links[name]
            rates = _rates(name, nic, look)
            nic.update(rates | _use(rates, link))
            if link.physical if physical else not link.stacked:
                _add(fields, nic)
        return Found(fields, [Device("host_net", "nic", name, nic) for name, nic in nics.items()])

    def _refresh(self, tree: Tree, nics: Mapping[str, Fields], now_ns: int) -> None:
        if self._asked_ns is None or abs(now_ns - self._asked_ns) >= _LINK_REFRESH_NS or nics.keys() - self._links:
            self._asked_ns = now_ns
            self._links = {name: read_link(tree, name) for name in nics}


def read_link(tree: Tree, name: str) -> Link:
    """Return what /sys tells of a NIC; nothing where there is no /sys."""
    folder = f"sys/class/net/{name}"
    try:
        names = tree.names(folder)
    except OSError:
        return Link()
    try:
        speed = count(tree.read(f"{folder}/speed").strip())
    except OSError:  # no cable, or a kind of NIC that has no speed
        speed = None
    stacked = any(entry == "bridge" or entry.startswith("lower_") for entry in names)
    return Link(speed * _BITS if speed else None, "device" in names, stacked)


def _rates(name: str, nic: Fields, look: Look) -> Fields:
    increases, elapsed_s = look.rates.grown(("nic", name), nic.copy(), look.now_ns)
    return {_RATES[field]: increase / elapsed_s for field, increase in increases.items()}


def _use(rates: Fields, link: Link) -> Fields:
    if link.speed_bytes_s is None:
        return {}
    found: Fields = {"link_speed_bytes_per_second": link.speed_bytes_s}
    carried = [rates[name] for name in ("receive_bytes_per_second", "transmit_bytes_per_second") if name in rates]
    if carried:
        found["utilisation_ratio"] = min(max(carried) / link.speed_bytes_s, 1.0)
    return found


def _add(fields: Fields, nic: Fields) -> None:
    """Add one NIC to the host's fields."""
    for name, total in _TOTALS.items():
        if name in nic:
            fields[total] = fields.get(total, 0) + nic[name]
    speed = "link_speed_bytes_per_second"
    if speed in nic:
        fields[f"nics_{speed}"] = max(fields.get(f"nics_{speed}", 0), nic[speed])
    if "utilisation_ratio" in nic:
        fields["nics_utilisation_ratio"] = max(fields.get("nics_utilisation_ratio", 0.0), nic["utilisation_ratio"])
