"""Reading every guest's statistics: one bulk call where the driver has it, else guest by guest under the same names.

Source: virConnectGetAllDomainStats, and for drivers without it (LXC) virDomainGetState, virDomainGetInfo,
virDomainGetCPUStats, virDomainMemoryStats, virDomainBlockStats and virDomainInterfaceStats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import ParseError

import structlog
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

log = structlog.get_logger(__name__)

Stats = dict[str, int | float | str | bool]

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
}
_BLOCK: Final = ("rd.reqs", "rd.bytes", "wr.reqs", "wr.bytes", "errors")
_NET: Final = tuple(f"{way}.{name}" for way in ("rx", "tx") for name in ("bytes", "pkts", "errs", "drop"))


class Reading(NamedTuple):
    """One guest as read: `run` is its id while it is active, another one after each start, -1 while it is off."""

    uuid: str
    name: str
    run: int
    stats: Stats


class Readings(NamedTuple):
    """All guests of one round, and how many could not be read."""

    guests: list[Reading]
    skipped: int


def read_all(binding: Any, connection: Any, *, outline: bool = False) -> Readings:
    """Return all guests, shut-off ones too; raises libvirt's error where the connection is lost.

    An outline leaves out what QEMU itself is asked for (balloon, vCPUs, disks): no stuck guest can hold it up.
    """
    known = binding
    wanted = known.VIR_DOMAIN_STATS_STATE | known.VIR_DOMAIN_STATS_CPU_TOTAL | known.VIR_DOMAIN_STATS_INTERFACE
    if not outline:
        wanted |= known.VIR_DOMAIN_STATS_BALLOON | known.VIR_DOMAIN_STATS_VCPU | known.VIR_DOMAIN_STATS_BLOCK
    nowait = known.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    try:
        found = connection.getAllDomainStats(wanted, nowait)
    except known.libvirtError as error:
        if connection.isAlive() != 1:
            raise
        if error.get_error_code() == known.VIR_ERR_NO_SUPPORT:
            return _each(binding, connection, lambda domain: _single(known, domain))
        # One guest that cannot be read fails libvirt's whole bulk call: the others are asked one by one.
        log.debug("bulk statistics failed", error=str(error))
        return _each(binding, connection, lambda domain: _alone(connection, domain, wanted, nowait))
    return Readings([_reading(domain, stats) for domain, stats in found], 0)


def _reading(domain: Any, stats: Stats) -> Reading:
    run = domain.ID()
    if run < 0:
        # Seen with libvirt 9.0: a guest that is off is told with the CPU time of libvirtd itself.
        stats = {name: value for name, value in stats.items() if not name.startswith("cpu.")}
    return Reading(domain.UUIDString(), domain.name(), run, stats)


def _alone(connection: Any, domain: Any, wanted: int, flags: int) -> Stats | None:
    for _domain, stats in connection.domainListGetStats([domain], wanted, flags):
        return dict(stats)
    return None


def _each(binding: Any, connection: Any, read: Callable[[Any], Stats | None]) -> Readings:
    """Read guest by guest; one that vanishes between listing and reading is left out and counted."""
    found, skipped = [], 0
    for domain in connection.listAllDomains():
        try:
            stats = read(domain)
        except binding.libvirtError as error:
            if connection.isAlive() != 1:
                raise
            log.debug("guest left out", error=str(error))
            stats = None
        if stats is None:
            skipped += 1
        else:
            found.append(_reading(domain, stats))
    return Readings(found, skipped)


def _single(binding: Any, domain: Any) -> Stats:
    """Ask for one guest what its driver has; only a guest without a state is not there."""
    state, reason = domain.state()
    stats: Stats = {"state.state": state, "state.reason": reason}
    for part in (_info, _cpu, _memory, _devices):
        try:
            stats.update(part(domain))
        except binding.libvirtError as error:
            log.debug("not told by this driver", part=part.__name__, error=str(error))
    return stats


def _info(domain: Any) -> Stats:
    _state, maximum, current, vcpus, cpu_time = domain.info()
    active = {"cpu.time": cpu_time} if domain.ID() >= 0 else {}
    stats = {"balloon.maximum": maximum, "balloon.current": current, "vcpu.current": vcpus, "vcpu.maximum": vcpus}
    return stats | active


def _cpu(domain: Any) -> Stats:
    if domain.ID() < 0:
        return {}
    (total,) = domain.getCPUStats(True)
    return {f"cpu.{part}": total[f"{part}_time"] for part in ("user", "system") if f"{part}_time" in total} | (
        {"cpu.time": total["cpu_time"]} if "cpu_time" in total else {}
    )


def _memory(domain: Any) -> Stats:
    if domain.ID() < 0:
        return {}
    told = domain.memoryStats()
    return {f"balloon.{ours}": told[theirs] for theirs, ours in _MEMORY.items() if theirs in told}


def _devices(domain: Any) -> Stats:
    if domain.ID() < 0:
        return {}
    description = domain.XMLDesc()
    stats: Stats = {}
    for index, target in enumerate(_targets(description, "interface")):
        stats[f"net.{index}.name"] = target
        numbers = domain.interfaceStats(target)
        stats |= {f"net.{index}.{name}": number for name, number in zip(_NET, numbers, strict=False) if number >= 0}
        stats["net.count"] = index + 1
    for index, target in enumerate(_targets(description, "disk")):
        stats[f"block.{index}.name"] = target
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
