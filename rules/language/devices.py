"""What a guest or a host has several of, each measured on its own: disks, network cards, file systems; and its job."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from virtpilot.model import Kind


class Device(StrEnum):
    """A kind of device, by the name of its measurement."""

    DISK = "vm_disk"
    NIC = "vm_net"
    VCPU = "vm_vcpu"
    IOTHREAD = "vm_iothread"
    FILESYSTEM = "vm_filesystem"
    JOB = "vm_job"
    PERF = "vm_perf"
    HOST_DISK = "host_disk"
    HOST_NIC = "host_net"
    NODE = "host_numa"
    HUGEPAGES = "host_hugepages"


Of = Kind | Device


class Declared(msgspec.Struct, frozen=True):
    """How rules call a device: `max(disks.<field>)`, or `job.<field>` where there is one at most (no `tag` names it).

    `always` are fields that each of its samples has; `text` is a tag that may be read as `<word>.<text>`.
    """

    device: Device
    owner: Kind
    word: str
    tag: str = ""
    always: tuple[str, ...] = ()
    text: str = ""


_ALL: Final = (
    Declared(Device.DISK, Kind.VM, "disks", "disk", ("read_requests_total", "capacity_bytes")),
    Declared(Device.NIC, Kind.VM, "nics", "nic", ("receive_bytes_total",)),
    Declared(Device.VCPU, Kind.VM, "vcpus", "vcpu", ("state_code", "time_seconds_total")),
    Declared(Device.IOTHREAD, Kind.VM, "iothreads", "iothread", ("poll_max_seconds",)),
    Declared(Device.FILESYSTEM, Kind.VM, "filesystems", "mountpoint", ("total_bytes", "used_bytes")),
    Declared(Device.JOB, Kind.VM, "job", always=("running_count",), text="operation"),
    Declared(Device.PERF, Kind.VM, "perf"),
    Declared(Device.HOST_DISK, Kind.HOST, "disks", "disk", ("read_requests_total",)),
    Declared(Device.HOST_NIC, Kind.HOST, "nics", "nic", ("receive_bytes_total",)),
    Declared(Device.NODE, Kind.HOST, "nodes", "node", ("memory_total_bytes",)),
    Declared(Device.HUGEPAGES, Kind.HOST, "hugepages", "size"),
)
DECLARED: Final = {declared.device: declared for declared in _ALL}
MANY: Final = {(declared.owner, declared.word): declared for declared in _ALL if declared.tag}
"""Those that a subject may have several of, by its kind and the word for them."""
SINGLE: Final = {declared.word: declared for declared in _ALL if not declared.tag}
"""Those that a guest has one of at most, by the word for it."""
WORDS: Final = tuple(dict.fromkeys(word for _owner, word in MANY))
NO_JOB: Final = "running_count"
"""The field that tells whether a job runs: of a guest without one it is 0, not unknown."""


def hint(field: str, measurement: str, on: Of) -> str:
    """Return how a rule on `on` reads a field of a device's measurement, "" where it cannot."""
    declared = DECLARED.get(Device(measurement)) if measurement in set(Device) else None
    if declared is None or declared.owner is not on:
        return ""
    return f"max({declared.word}.{field})" if declared.tag else f"{declared.word}.{field}"


def named(measurement: str, field: str, own: str) -> str:
    """Return what a field is called among the values that a condition on `own` reads."""
    if measurement == own:
        return field
    declared = DECLARED.get(Device(measurement)) if measurement in set(Device) else None
    return f"{declared.word if declared is not None else measurement}.{field}"


def called(word: str, name: str, text: str) -> str:
    """Return what a device's value is called among those that a condition reads: `disks[vda].read_latency_seconds`."""
    own = f"{word}[{name}]."
    return text.replace(f"{word}.", own) if f"{word}." in text else f"{own}{text}"


def names_in(inputs: Iterable[str], word: str) -> list[str]:
    """Return the names of the devices whose values stand among a condition's inputs."""
    found = (match[1] for one in inputs for match in [re.search(rf"\b{word}\[(.+?)\]\.", one)] if match is not None)
    return list(dict.fromkeys(found))
