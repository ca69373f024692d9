"""Whether the target of a migration offers what a guest needs, by its own libvirt's word.

Asked: its name and UUID, CPU, emulator and machine type, networks, bridges, memory, and disks (libvirt_target_disks).
Source: virConnectGetDomainCapabilities, virConnectCompareHypervisorCPU, virConnectCompareCPU, virNetworkLookupByName,
virInterfaceLookupByName, virNodeGetMemoryStats, virNodeGetFreePages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, tostring

import msgspec
import structlog
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.errors import HypervisorError

log = structlog.get_logger(__name__)

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
# libvirt tells a definition's sizes in one of these once it has read them.
_UNITS: Final = {
    "bytes": 1,
    "b": 1,
    "KiB": _KIB,
    "k": _KIB,
    "MiB": _MIB,
    "M": _MIB,
    "GiB": 1024 * _MIB,
    "G": 1024 * _MIB,
}
_ALL_NODES: Final = -1


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest needs of the host that it runs on."""

    name: str = ""
    uuid: str = ""
    cpu: str = ""
    """Its CPU as XML, "" where any will do."""
    passthrough: bool = False
    """Whether it has its host's own CPU."""
    emulator: str | None = None
    arch: str | None = None
    machine: str | None = None
    kind: str | None = None
    networks: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    """The NICs of its host that it shares."""
    memory_bytes: int = 0
    page_bytes: int = 0
    """The size of the huge pages that its memory is in; 0: of usual ones, or nobody says."""
    tied: bool = False
    """Whether a device of its host is passed through to it."""


def read_needs(xml: str) -> Needs:
    """Return what a running guest's definition needs; raises HypervisorError where it is none."""
    try:
        domain = fromstring(xml)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise HypervisorError(f"the guest's definition is not readable: {error}") from error
    cpu, kind = domain.find("cpu"), domain.find("os/type")
    compared = cpu is not None and cpu.get("mode") == "custom" and cpu.get("check") != "none"
    huge = domain.find("memoryBacking/hugepages") is not None
    page = _size(domain.find("memoryBacking/hugepages/page"), "size")
    return Needs(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        cpu=tostring(cpu, encoding="unicode") if compared and cpu is not None else "",
        passthrough=cpu is not None and cpu.get("mode") == "host-passthrough",
        emulator=domain.findtext("devices/emulator"),
        arch=kind.get("arch") if kind is not None else None,
        machine=kind.get("machine") if kind is not None else None,
        kind=domain.get("type"),
        networks=_sources(domain, "network"),
        bridges=_sources(domain, "bridge"),
        links=_sources(domain, "dev"),
        memory_bytes=0 if huge and not page else _size(domain.find("memory" if huge else "currentMemory")),
        page_bytes=page,
        tied=domain.find("devices/hostdev") is not None,
    )


def _sources(domain: Element, wanted: str) -> tuple[str, ...]:
    """Return what the guest's NICs are on, of one sort; one on a network is on whatever that is there."""
    found = set()
    for source in domain.iterfind("devices/interface/source"):
        sort = next((sort for sort in ("network", "bridge", "dev") if source.get(sort)), "")
        if sort == wanted:
            found.add(source.get(sort, ""))
    return tuple(sorted(found))


def _size(element: Element | None, attribute: str = "") -> int:
    """Return a size in bytes, 0 where there is none."""
    if element is None:
        return 0
    digits = element.get(attribute, "") if attribute else (element.text or "")
    return int(digits) * _UNITS.get(element.get("unit", "KiB"), 0) if digits.isascii() and digits.isdigit() else 0


def host_cpu(capabilities: str) -> str:
    """Return a host's CPU as XML, "" where its capabilities tell of none."""
    try:
        cpu = fromstring(capabilities).find("host/cpu")
    except (ParseError, DefusedXmlException, ValueError):
        return ""
    return tostring(cpu, encoding="unicode") if cpu is not None else ""


def lacking(binding: Any, target: Any, needs: Needs, own_cpu: str) -> Iterator[str]:
    """Yield what the libvirt `target` does not offer of a guest's needs; what it cannot say is no objection.

    `own_cpu` is the CPU of the host that the guest is on.
    """
    if needs.tied:
        yield "the device of its host that is passed through to the guest"
    yield from _taken(binding, target, needs)
    if needs.cpu and _says(binding, lambda: _compared(target, needs)) == binding.VIR_CPU_COMPARE_INCOMPATIBLE:
        yield "the guest's CPU"
    if needs.passthrough and own_cpu:
        compared = _says(binding, lambda: target.compareCPU(own_cpu, 0))
        if compared == binding.VIR_CPU_COMPARE_INCOMPATIBLE:
            yield "its host's CPU, which the guest has as it is"
    yield from _machine(binding, target, needs)
    for network in needs.networks:
        if _says(binding, partial(_active, binding, target, network)) is False:
            yield f"the network {network}"
    for sort, names in (("bridge", needs.bridges), ("NIC", needs.links)):
        for name in names:
            if _says(binding, partial(_exists, binding, target, name)) is False:
                yield f"the {sort} {name}"
    yield from _memory(binding, target, needs)


def _taken(binding: Any, target: Any, needs: Needs) -> Iterator[str]:
    """Yield the guest's name and UUID where they are somebody's: what is off and has both gives way to it."""
    for told in (_by_uuid, _by_name):
        if said := _says(binding, partial(told, binding, target, needs)):
            yield said


def _by_uuid(binding: Any, target: Any, needs: Needs) -> str:
    same = _found(binding, target.lookupByUUIDString, needs.uuid)
    if same is None:
        return ""
    name, runs = same.name(), bool(same.isActive())
    return (
        f"the guest's UUID, which is {name}'s there{', and that runs' if runs else ''}"
        if runs or name != needs.name
        else ""
    )


def _by_name(binding: Any, target: Any, needs: Needs) -> str:
    namesake = _found(binding, target.lookupByName, needs.name)
    other = namesake is not None and namesake.UUIDString() != needs.uuid
    return f"the guest's name {needs.name}, which another guest has there" if other else ""


def _machine(binding: Any, target: Any, needs: Needs) -> Iterator[str]:
    """Yield the one that is not there of emulator, kind of virtualisation and machine type."""

    def offers(kind: str | None, machine: str | None) -> bool:
        try:
            target.getDomainCapabilities(needs.emulator, needs.arch, machine, kind, 0)
        except binding.libvirtError as error:
            if error.get_error_code() in {binding.VIR_ERR_INVALID_ARG, binding.VIR_ERR_SYSTEM_ERROR}:
                return False
            raise
        return True

    if not needs.emulator or _says(binding, partial(offers, needs.kind, needs.machine)) is not False:
        return
    if not _says(binding, partial(offers, None, None)):
        yield f"the emulator {needs.emulator}"
    elif not _says(binding, partial(offers, needs.kind, None)):
        yield f"guests of the kind {needs.kind}"
    else:
        yield f"the machine type {needs.machine}"


def _memory(binding: Any, target: Any, needs: Needs) -> Iterator[str]:
    """Yield the guest's memory where less is to be had: caches give way, huge pages are set apart."""
    if not needs.memory_bytes:
        return
    free = _says(binding, partial(_pages if needs.page_bytes else _free, target, needs))
    if free is not None and free < needs.memory_bytes:
        pages = f" in pages of {needs.page_bytes // _KIB} KiB" if needs.page_bytes else ""
        yield f"{needs.memory_bytes // _MIB} MiB of memory{pages} ({free // _MIB} MiB are free)"


def _free(target: Any, _needs: Needs) -> int | None:
    told = target.getMemoryStats(_ALL_NODES, 0)
    return sum(int(told.get(part, 0)) for part in ("free", "buffers", "cached")) * _KIB if "free" in told else None


def _pages(target: Any, needs: Needs) -> int:
    told = target.getFreePages([needs.page_bytes // _KIB], _ALL_NODES, 1, 0)
    return sum(int(count) for node in told.values() for count in node.values()) * needs.page_bytes


def _compared(target: Any, needs: Needs) -> int:
    return int(target.compareHypervisorCPU(needs.emulator, needs.arch, needs.machine, needs.kind, needs.cpu, 0))


def _found(binding: Any, look_up: Callable[[str], Any], what: str) -> Any:
    """Return a guest, None where there is none such."""
    try:
        return look_up(what) if what else None
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _active(binding: Any, target: Any, network: str) -> bool:
    try:
        return bool(target.networkLookupByName(network).isActive())
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_NETWORK:
            return False
        raise


def _exists(binding: Any, target: Any, link: str) -> bool:
    """Tell whether a bridge or NIC is there: libvirt calls one inactive that has no other guest on it yet."""
    try:
        target.interfaceLookupByName(link)
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_INTERFACE:
            return False
        raise
    return True


def _says(binding: Any, ask: Callable[[], Any]) -> Any:
    """Return an answer, None where there is none."""
    try:
        return ask()
    except binding.libvirtError as error:
        log.debug("the target does not say", error=str(error))
        return None
