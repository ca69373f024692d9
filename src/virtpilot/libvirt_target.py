"""Whether the target of a migration offers what a guest needs, by its own libvirt's word: CPU, networks.

Bridges are not asked for: libvirt's list of a host's links knows physical ones only.
Source: virConnectCompareHypervisorCPU, virConnectCompareCPU, virNetworkLookupByName.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element, ParseError, tostring

import msgspec
import structlog
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.errors import HypervisorError

log = structlog.get_logger(__name__)


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest needs of the host that it runs on."""

    cpu: str = ""
    """Its CPU as XML, "" where any will do."""
    passthrough: bool = False
    """Whether it has its host's own CPU."""
    emulator: str | None = None
    arch: str | None = None
    machine: str | None = None
    kind: str | None = None
    networks: tuple[str, ...] = ()
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
    return Needs(
        cpu=tostring(cpu, encoding="unicode") if compared and cpu is not None else "",
        passthrough=cpu is not None and cpu.get("mode") == "host-passthrough",
        emulator=domain.findtext("devices/emulator"),
        arch=kind.get("arch") if kind is not None else None,
        machine=kind.get("machine") if kind is not None else None,
        kind=domain.get("type"),
        networks=_networks(domain),
        tied=domain.find("devices/hostdev") is not None,
    )


def _networks(domain: Element) -> tuple[str, ...]:
    """Return the networks that the guest's NICs are on."""
    sources = domain.iterfind("devices/interface[@type='network']/source")
    return tuple(sorted({name for source in sources if (name := source.get("network", ""))}))


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
    if needs.cpu and _says(binding, lambda: _compared(target, needs)) == binding.VIR_CPU_COMPARE_INCOMPATIBLE:
        yield "the guest's CPU"
    if needs.passthrough and own_cpu:
        compared = _says(binding, lambda: target.compareCPU(own_cpu, 0))
        if compared == binding.VIR_CPU_COMPARE_INCOMPATIBLE:
            yield "its host's CPU, which the guest has as it is"
    for network in needs.networks:
        if _says(binding, partial(_active, binding, target, network)) is False:
            yield f"the network {network}"


def _compared(target: Any, needs: Needs) -> int:
    return int(target.compareHypervisorCPU(needs.emulator, needs.arch, needs.machine, needs.kind, needs.cpu, 0))


def _active(binding: Any, target: Any, network: str) -> bool:
    try:
        return bool(target.networkLookupByName(network).isActive())
    except binding.libvirtError as error:
        if error.get_error_code() == binding.VIR_ERR_NO_NETWORK:
            return False
        raise


def _says(binding: Any, ask: Callable[[], Any]) -> Any:
    """Return an answer, None where there is none."""
    try:
        return ask()
    except binding.libvirtError as error:
        log.debug("the target does not say", error=str(error))
        return None
