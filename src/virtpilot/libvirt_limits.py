"""What is configured for a guest, from its live XML and its scheduler parameters: limits, weights, the balloon.

Source: virDomainGetXMLDesc (cputune, memtune, blkiotune, iotune, bandwidth), virDomainGetSchedulerParametersFlags.
What has no limit is absent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import structlog
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.hypervisor import GuestDetails
from virtpilot.knobs import find, numbers_in

log = structlog.get_logger(__name__)

Numbers = dict[str, int | float]

_MAX_XML: Final = 4 * 1024 * 1024
_MAX_NUMBER: Final = 2**63 - 1
_KIB: Final = 1024
# tc reads libvirt's kilobytes of a rate as thousands, those of a burst as 1024s.
_KILO: Final = 1000
_UNLIMITED: Final = (2**53 - 1) * _KIB  # VIR_DOMAIN_MEMORY_PARAM_UNLIMITED
_MEMORY: Final = ("hard_limit", "soft_limit", "swap_hard_limit")
_UNITS: Final = {"b": 1, "bytes": 1, "KiB": _KIB, "k": _KIB, "MiB": _KIB**2, "M": _KIB**2, "GiB": _KIB**3, "G": _KIB**3}
_IOTUNE: Final = {
    f"{way}_{what}_sec{burst}": f"{way}{'_burst' if burst else ''}_limit_{field}_per_second"
    for way in ("read", "write", "total")
    for what, field in (("bytes", "bytes"), ("iops", "requests"))
    for burst in ("", "_max")
}
_BANDWIDTH: Final = {
    "average": ("limit_bytes_per_second", _KILO),
    "peak": ("peak_limit_bytes_per_second", _KILO),
    "burst": ("burst_limit_bytes", _KIB),
}
_WAYS: Final = {"inbound": "receive", "outbound": "transmit"}
_AGENT: Final = "org.qemu.guest_agent.0"


class Configured(NamedTuple):
    """A guest's knobs by name, in base units, the same beside its usage, and whether its guest agent listens."""

    knobs: dict[str, int]
    details: GuestDetails
    agent: bool


def read_configured(text: str, schedule: Mapping[str, Any]) -> Configured:
    """Return what a guest's live XML and scheduler parameters say; of XML that cannot be read, nothing."""
    root = root_of(text)
    knobs: dict[str, int] = {}
    guest = _cpu(schedule, knobs)
    if root is None:
        return Configured(knobs, GuestDetails(guest), agent=False)
    guest |= _memory(root, knobs)
    weight = _whole(root.findtext("blkiotune/weight"))
    if weight:
        guest["blkio_weight_count"] = knobs["blkio_weight"] = weight
    disks = {name: _disk(name, disk, knobs) for disk in root.iterfind("devices/disk") if (name := _target(disk))}
    nics = _nics(root, knobs)
    _pins(root, knobs)
    _plugged(root, knobs)
    details = GuestDetails(guest, _told(disks), _told(nics))
    return Configured(knobs, details, agent_listens(root))


def root_of(text: str) -> Element | None:
    """Return a description's root, None where it is no XML that is to be trusted."""
    if len(text) > _MAX_XML:
        return None
    try:
        return fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        log.debug("a guest's XML cannot be read", error=str(error))
        return None


def _cpu(schedule: Mapping[str, Any], knobs: dict[str, int]) -> Numbers:
    """Return shares and quotas; a period is told with its quota only."""
    guest: Numbers = {}
    shares = _whole(schedule.get("cpu_shares"))
    if shares:
        guest["cpu_shares_count"] = knobs["cpu_shares"] = shares
    for part, field in (
        ("vcpu", "cpu_limit_ratio"),
        ("global", "cpu_guest_limit_count"),
        ("emulator", "cpu_emulator_limit_count"),
        ("iothread", "cpu_iothread_limit_count"),
    ):
        quota, period = _whole(schedule.get(f"{part}_quota")), _whole(schedule.get(f"{part}_period"))
        if quota and period:
            knobs |= {f"{part}_quota": quota, f"{part}_period": period}
            guest[field] = quota / period
    return guest


def _memory(root: Element, knobs: dict[str, int]) -> Numbers:
    guest: Numbers = {}
    target = _bytes(root.find("currentMemory"))
    if target:
        guest["memory_balloon_target_bytes"] = knobs["memory_balloon"] = target
    for name in _MEMORY:
        limit = _bytes(root.find(f"memtune/{name}"))
        if limit:
            guest[f"memory_{name}_bytes"] = knobs[f"memory_{name}"] = limit
    return guest


def _disk(name: str, disk: Element, knobs: dict[str, int]) -> Numbers:
    found: Numbers = {}
    for theirs, ours in _IOTUNE.items():
        limit = _whole(disk.findtext(f"iotune/{theirs}"))
        if limit:
            found[ours] = knobs[f"{name}.{theirs}"] = limit
    return found


def _nics(root: Element, knobs: dict[str, int]) -> dict[str, Numbers]:
    """Return the NICs' numbers by target; their knobs go by their order, which every host has alike."""
    found = {}
    for number, nic in enumerate(root.iterfind("devices/interface")):
        numbers = _nic(f"nic{number}", nic, knobs)
        if name := _target(nic):
            found[name] = numbers
    return found


def _pins(root: Element, knobs: dict[str, int]) -> None:
    """Tell what pins there are; vCPUs that are pinned one by one are told as nothing."""
    emulator = root.find("cputune/emulatorpin")
    vcpus = {pin.get("cpuset", "") for pin in root.iterfind("cputune/vcpupin")}
    count = _whole(root.findtext("vcpu"))
    whole = len(root.findall("cputune/vcpupin")) == count
    for name, told in (
        ("emulatorpin", emulator.get("cpuset", "") if emulator is not None else ""),
        ("vcpupin", vcpus.pop() if whole and len(vcpus) == 1 else ""),
    ):
        with contextlib.suppress(ValueError):
            knobs[name] = numbers_in(told)


def _plugged(root: Element, knobs: dict[str, int]) -> None:
    for device in root.iterfind("devices/memory[@model='virtio-mem']"):
        alias, size = device.find("alias"), device.find("target/current")
        name = f"{alias.get('name', '')}.plugged" if alias is not None else ""
        if size is not None and find(name) is not None:
            knobs[name] = _bytes(size)


def _nic(name: str, nic: Element, knobs: dict[str, int]) -> Numbers:
    found: Numbers = {}
    for way, ours in _WAYS.items():
        element = nic.find(f"bandwidth/{way}")
        for theirs, (field, factor) in _BANDWIDTH.items():
            limit = _whole(element.get(theirs)) if element is not None else 0
            if limit:
                found[f"{ours}_{field}"] = knobs[f"{name}.{way}_{theirs}"] = limit * factor
    return found


def _target(device: Element) -> str:
    target = device.find("target")
    return target.get("dev", "") if target is not None else ""


def _told(devices: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {name: numbers for name, numbers in devices.items() if numbers}


def agent_listens(root: Element) -> bool:
    """Return whether a guest's own agent is connected."""
    return any(
        target.get("name") == _AGENT and target.get("state") == "connected"
        for target in root.iterfind("devices/channel/target")
    )


def _bytes(element: Element | None) -> int:
    if element is None:
        return 0
    number = _whole(element.text) * _UNITS.get(element.get("unit", "KiB"), 0)
    return number if number < _UNLIMITED else 0


def _whole(value: object) -> int:
    """Return a positive whole number that libvirt told, as text or as it is; 0 for none, no limit or nonsense."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    return number if number <= _MAX_NUMBER else 0
