"""What a guest needs of a target, and what a target's libvirt says to that."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from virtpilot.errors import HypervisorError
from virtpilot.libvirt_target import Needs, host_cpu, lacking, read_needs

GUEST = """
<domain type='kvm'>
  <name>web-1</name>
  <uuid>u-1</uuid>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='custom' match='exact' check='full'><model fallback='forbid'>Skylake-Server</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='network'><source network='blue'/></interface>
    <interface type='network'><source network='blue'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    {more}
  </devices>
</domain>
"""


class LibvirtError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"error {code}")
        self.code = code

    def get_error_code(self) -> int:
        return self.code


BINDING = SimpleNamespace(
    libvirtError=LibvirtError, VIR_CPU_COMPARE_INCOMPATIBLE=0, VIR_ERR_NO_NETWORK=43, VIR_ERR_NO_INTERFACE=57,
    VIR_ERR_NO_DOMAIN=42, VIR_ERR_INVALID_ARG=8, VIR_ERR_SYSTEM_ERROR=38,
)  # fmt: skip
GIB = 2**30
EMULATOR = "/usr/bin/qemu-system-x86_64"


Links = dict[str, Any]


class Guest:
    """A guest that the target has already."""

    def __init__(self, name: str, uuid: str, *, runs: bool = True) -> None:
        self._name, self._uuid, self._runs = name, uuid, runs

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's name
        return self._uuid

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self._runs)


class Target:
    """A libvirt that answers as it is told: of a link whether it is up, or with an error of that code."""

    def __init__(
        self,
        cpu: int = 2,
        networks: Links | None = None,
        *,
        links: Links | None = None,
        guests: tuple[Guest, ...] = (),
        machines: tuple[str, ...] = ("pc-q35-7.2",),
        kinds: tuple[str, ...] = ("kvm",),
        emulators: tuple[str, ...] = (EMULATOR,),
        free: int = 8 * GIB,
        huge: int = 0,
        dumb: int = 0,
    ) -> None:
        self._cpu, self._dumb, self._free, self._huge = cpu, dumb, free, huge
        self._networks = {"blue": True} if networks is None else networks
        self._links = {"br0": True} if links is None else links
        self._guests, self._machines, self._kinds, self._emulators = guests, machines, kinds, emulators
        self.asked: list[tuple[Any, ...]] = []

    def compareHypervisorCPU(self, *asked: Any) -> int:  # noqa: N802 - libvirt's name
        self.asked.append(asked)
        if self._cpu < 0:
            raise LibvirtError(3)
        return self._cpu

    def compareCPU(self, cpu: str, _flags: int) -> int:  # noqa: N802 - libvirt's name
        self.asked.append((cpu,))
        return self._cpu

    def networkLookupByName(self, name: str) -> Any:  # noqa: N802 - libvirt's name
        return self._link(self._networks, name, BINDING.VIR_ERR_NO_NETWORK)

    def interfaceLookupByName(self, name: str) -> Any:  # noqa: N802 - libvirt's name
        return self._link(self._links, name, BINDING.VIR_ERR_NO_INTERFACE)

    def _link(self, known: Links, name: str, absent: int) -> Any:
        found = known.get(name, absent)
        if isinstance(found, int) and not isinstance(found, bool):
            raise LibvirtError(found)
        return SimpleNamespace(isActive=lambda: int(found))

    def lookupByName(self, name: str) -> Guest:  # noqa: N802 - libvirt's name
        return self._guest(guest for guest in self._guests if guest.name() == name)

    def lookupByUUIDString(self, uuid: str) -> Guest:  # noqa: N802 - libvirt's name
        return self._guest(guest for guest in self._guests if guest.UUIDString() == uuid)

    def _guest(self, found: Iterator[Guest]) -> Guest:
        self._speak()
        if (guest := next(found, None)) is None:
            raise LibvirtError(BINDING.VIR_ERR_NO_DOMAIN)
        return guest

    def getDomainCapabilities(  # noqa: N802 - libvirt's name
        self, emulator: str | None, _arch: str | None, machine: str | None, kind: str | None, _flags: int
    ) -> str:
        self._speak()
        if emulator not in self._emulators:
            raise LibvirtError(BINDING.VIR_ERR_SYSTEM_ERROR)
        if machine not in (None, *self._machines) or kind not in (None, *self._kinds):
            raise LibvirtError(BINDING.VIR_ERR_INVALID_ARG)
        return "<domainCapabilities/>"

    def getMemoryStats(self, _node: int, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's name
        self._speak()
        return {"total": 2**24, "free": self._free // 1024 - 3, "buffers": 1, "cached": 2}

    def getFreePages(self, sizes: list[int], _start: int, _count: int, _flags: int) -> dict[int, Any]:  # noqa: N802
        self._speak()
        return {-1: {sizes[0]: self._huge}}

    def _speak(self) -> None:
        if self._dumb:
            raise LibvirtError(self._dumb)


def needs(more: str = "") -> Needs:
    return read_needs(GUEST.format(more=more))


def test_what_a_guest_needs() -> None:
    found = needs()
    assert (found.networks, found.tied, found.passthrough) == (("blue",), False, False)
    assert (found.name, found.uuid, found.bridges, found.memory_bytes) == ("web-1", "u-1", ("br0",), 2 * GIB)
    assert (found.kind, found.arch, found.machine) == ("kvm", "x86_64", "pc-q35-7.2")
    assert "Skylake-Server" in found.cpu


@pytest.mark.parametrize("xml", ["", "<domain", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>"])
def test_what_is_no_definition(xml: str) -> None:
    with pytest.raises(HypervisorError, match="not readable"):
        read_needs(xml)


@pytest.mark.parametrize(
    ("target", "more", "lacks"),
    [
        (Target(), "", []),
        (Target(cpu=0), "", ["the guest's CPU"]),
        (Target(cpu=-1), "", []),
        (Target(networks={}), "", ["the network blue"]),
        (Target(networks={"blue": False}), "", ["the network blue"]),
        (Target(networks={"blue": 38}), "", []),
        (Target(), "<hostdev mode='subsystem' type='pci'/>",
         ["the device of its host that is passed through to the guest"]),
        (Target(cpu=0, networks={}), "", ["the guest's CPU", "the network blue"]),
        (Target(links={}), "", ["the bridge br0"]),
        (Target(links={"br0": False}), "", []),
        (Target(links={"br0": 3}), "", []),
        (Target(), "<interface type='direct'><source dev='eth1' mode='bridge'/></interface>", ["the NIC eth1"]),
        (Target(), "<interface type='bridge'><source network='red' bridge='br1'/></interface>", ["the network red"]),
        (Target(guests=(Guest("web-1", "u-9"),)), "", ["the guest's name web-1, which another guest has there"]),
        (Target(guests=(Guest("web-1", "u-1"),)), "", ["the guest's UUID, which is web-1's there, and that runs"]),
        (Target(guests=(Guest("web-1", "u-1", runs=False),)), "", []),
        (Target(guests=(Guest("old", "u-1", runs=False),)), "", ["the guest's UUID, which is old's there"]),
        (Target(guests=(Guest("web-2", "u-2"),)), "", []),
        (Target(machines=()), "", ["the machine type pc-q35-7.2"]),
        (Target(kinds=()), "", ["guests of the kind kvm"]),
        (Target(emulators=()), "", [f"the emulator {EMULATOR}"]),
        (Target(free=GIB), "", ["2048 MiB of memory (1024 MiB are free)"]),
        (Target(free=2 * GIB), "", []),
        (Target(guests=(Guest("web-1", "u-9"),), machines=(), free=0, dumb=3), "", []),
    ],
)  # fmt: skip
def test_what_a_target_lacks(target: Target, more: str, lacks: list[str]) -> None:
    """What it cannot say is no objection."""
    assert list(lacking(BINDING, target, needs(more), "<cpu/>")) == lacks


@pytest.mark.parametrize(
    ("page", "huge", "lacks"),
    [
        ("<page size='2048' unit='KiB'/>", 2048, []),
        ("<page size='2048' unit='KiB'/>", 2047, ["4096 MiB of memory in pages of 2048 KiB (4094 MiB are free)"]),
        ("", 0, []),
    ],
)
def test_huge_pages_are_counted_by_themselves(page: str, huge: int, lacks: list[str]) -> None:
    """All that the guest may have is taken of them at once; of which size they are must be known."""
    backing = f"<memoryBacking><hugepages>{page}</hugepages></memoryBacking><os>"
    found = read_needs(GUEST.format(more="").replace("<os>", backing))
    assert list(lacking(BINDING, Target(free=0, huge=huge), found, "")) == lacks


def test_a_cpu_that_nobody_checks_is_not_compared() -> None:
    xml = GUEST.format(more="").replace("check='full'", "check='none'")
    assert list(lacking(BINDING, Target(cpu=0), read_needs(xml), "")) == []


def test_a_hosts_own_cpu_is_compared_with_the_targets() -> None:
    xml = GUEST.format(more="").replace("mode='custom'", "mode='host-passthrough'")
    target = Target(cpu=0)
    own = host_cpu("<capabilities><host><cpu><arch>x86_64</arch></cpu></host></capabilities>")
    assert list(lacking(BINDING, target, read_needs(xml), own)) == ["its host's CPU, which the guest has as it is"]
    assert target.asked == [("<cpu><arch>x86_64</arch></cpu>",)]
