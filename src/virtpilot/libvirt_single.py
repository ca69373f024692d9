"""Reading one guest of a driver without bulk statistics (LXC), under the names that the bulk call has.

Source: virDomainGetState, virDomainGetInfo, virDomainGetCPUStats, virDomainMemoryStats, virDomainBlockStats,
virDomainInterfaceStats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from xml.etree.ElementTree import ParseError

import structlog
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.libvirt_stats import Reading, Stats, reading_of

log = structlog.get_logger(__name__)

_MAX_XML: Final = 4 * 1024 * 1024
_MEMORY: Final = {
    "actual": "current",
    "rss": "rss",
    "unused": "unused",
    "usable": "usable",
    "available": "available",
    "swap_in": "swap_in",
    "swap_out": "swap_out",
    "major_fault": "major_fault",
    "minor_fault": "minor_fault",
    "disk_caches": "disk_caches",
    "last_update": "last-update",
}
_BLOCK: Final = ("rd.reqs", "rd.bytes", "wr.reqs", "wr.bytes", "errors")
_NET: Final = tuple(f"{way}.{name}" for way in ("rx", "tx") for name in ("bytes", "pkts", "errs", "drop"))
# A container has no disks: LXC tells of all its block I/O together, under no name.
_ALL_DISKS: Final = "all"


def read_single(binding: Any, connection: Any, uuid: str) -> Reading:
    """Ask for one guest what its driver has; raises libvirt's error where it is not there."""
    domain = connection.lookupByUUIDString(uuid)
    state, reason = domain.state()
    stats: Stats = {"state.state": state, "state.reason": reason}
    lxc = connection.getType() == "LXC"
    for part in (_info, _cpu, _memory, _devices):
        try:
            stats.update(part(domain, lxc))
        except binding.libvirtError as error:
            log.debug("not told by this driver", part=part.__name__, error=str(error))
    return reading_of(connection, domain, stats, asks_guests=False)


def _info(domain: Any, _lxc: bool) -> Stats:
    _state, maximum, current, vcpus, cpu_time = domain.info()
    active = {"cpu.time": cpu_time} if domain.ID() >= 0 else {}
    stats = {"balloon.maximum": maximum, "balloon.current": current, "vcpu.current": vcpus, "vcpu.maximum": vcpus}
    return stats | active


def _cpu(domain: Any, _lxc: bool) -> Stats:
    if domain.ID() < 0:
        return {}
    (total,) = domain.getCPUStats(True)
    return {f"cpu.{part}": total[f"{part}_time"] for part in ("user", "system") if f"{part}_time" in total} | (
        {"cpu.time": total["cpu_time"]} if "cpu_time" in total else {}
    )


def _memory(domain: Any, lxc: bool) -> Stats:
    if domain.ID() < 0:
        return {}
    told = domain.memoryStats()
    if lxc:
        told.pop("swap_in", None)  # there it is memory and swap in use, no counter of what was swapped in
    return {f"balloon.{ours}": told[theirs] for theirs, ours in _MEMORY.items() if theirs in told}


def _devices(domain: Any, lxc: bool) -> Stats:
    if domain.ID() < 0:
        return {}
    description = domain.XMLDesc()
    stats: Stats = {}
    for index, target in enumerate(_targets(description, "interface")):
        stats[f"net.{index}.name"] = target
        numbers = domain.interfaceStats(target)
        stats |= {f"net.{index}.{name}": number for name, number in zip(_NET, numbers, strict=False) if number >= 0}
        stats["net.count"] = index + 1
    disks = [(_ALL_DISKS, "")] if lxc else [(target, target) for target in _targets(description, "disk")]
    for index, (name, target) in enumerate(disks):
        stats[f"block.{index}.name"] = name
        numbers = domain.blockStats(target)
        stats |= {f"block.{index}.{name}": number for name, number in zip(_BLOCK, numbers, strict=False) if number >= 0}
        stats["block.count"] = index + 1
    return stats


def _targets(description: str, device: str) -> Iterator[str]:
    """Yield the names of a guest's devices, from its own XML."""
    if len(description) > _MAX_XML:
        return
    try:
        root = fromstring(description, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        log.debug("a guest's XML cannot be read", error=str(error))
        return
    for target in root.iterfind(f"devices/{device}/target"):
        name = target.get("dev")
        if name:
            yield name
