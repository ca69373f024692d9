"""The lab's wire: a bridge on a private range, and a veth pair into each host's network namespace."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from zlib import crc32

from deploy.lab.command import output
from deploy.lab.errors import LabError

_CANDIDATES = [IPv4Network(f"10.{second}.{third}.0/24") for second in (77, 177, 211) for third in range(40, 240)]
_LOOPBACK = "127.0.0.1"


def free_network(routed: Sequence[IPv4Network], name: str = "") -> IPv4Network:
    """Return the first candidate /24 that overlaps with no routed network; raises LabError.

    Each name of a lab has a first candidate of its own, so that two that come up at once do not take the same.
    """
    first = crc32(name.encode()) % len(_CANDIDATES)
    for candidate in [*_CANDIDATES[first:], *_CANDIDATES[:first]]:
        if not any(candidate.overlaps(one) for one in routed if one.prefixlen):
            return candidate
    raise LabError("no free 10.x.y.0/24 found for the lab: give one")


def routed_networks() -> list[IPv4Network]:
    """Return the IPv4 networks that this machine has routes to."""
    routes = json.loads(output(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    return [
        IPv4Network(str(route["dst"]), strict=False) for route in routes if route.get("dst", "default") != "default"
    ]


def free_port(address: str) -> int:
    """Return a TCP port that is free just now, on `address` and on loopback."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind((address, 0))
            port = int(one.getsockname()[1])
            try:
                if address != _LOOPBACK:
                    other.bind((_LOOPBACK, port))
            except OSError:  # taken on loopback: another one
                continue
            return port


def bridge_mac(address: IPv4Address) -> str:
    """Return the hardware address for a bridge at `address`.

    One that is not set follows the lowest of its ports: a guest's interface may change it, even to that of another
    host's bridge while the guest moves there, and the host is not reached until its neighbours have forgotten the old.
    """
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x76, *address.packed))


class Bridge:
    """The bridge that joins the hosts; this machine is the last address of the range, hosts count from 1."""

    def __init__(self, lab: str, network: IPv4Network) -> None:
        self.name = f"vp-{lab}"
        self.network = network

    @property
    def address(self) -> IPv4Address:
        """The address of this machine on the bridge."""
        return self.network.broadcast_address - 1

    def host_address(self, number: int) -> IPv4Address:
        """Return the address of host `number`, from 1."""
        return self.network.network_address + number

    def create(self) -> None:
        """Make the bridge and give this machine its address."""
        output(["ip", "link", "add", self.name, "address", bridge_mac(self.address), "type", "bridge"])
        output(["ip", "address", "add", f"{self.address}/{self.network.prefixlen}", "dev", self.name])
        output(["ip", "link", "set", self.name, "up"])

    def join(self, number: int, pid: int) -> None:
        """Put a cable between the bridge and the network namespace of `pid`, where its end is named eth0."""
        cable = f"{self.name}-{number}"
        output(["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
        output(["ip", "link", "set", cable, "master", self.name, "up"])


def devices_of(lab: str) -> list[str]:
    """Return the lab's network devices on this machine: bridge and cable ends."""
    prefix = f"vp-{lab}"
    names = [path.name for path in Path("/sys/class/net").iterdir()]
    return sorted(name for name in names if name == prefix or name.startswith(f"{prefix}-"))


def remove_devices(lab: str) -> None:
    """Remove the lab's network devices; one that vanishes meanwhile with its namespace is fine."""
    for name in reversed(devices_of(lab)):
        try:
            output(["ip", "link", "delete", name])
        except LabError:
            if name in devices_of(lab):
                raise
