"""What a guest needs of a target, and what a target's libvirt says to that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from virtpilot.errors import HypervisorError
from virtpilot.libvirt_target import Needs, host_cpu, lacking, read_needs

GUEST = """
<domain type='kvm'>
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


BINDING = SimpleNamespace(libvirtError=LibvirtError, VIR_ERR_NO_NETWORK=43, VIR_CPU_COMPARE_INCOMPATIBLE=0)


class Target:
    """A libvirt that answers as it is told."""

    def __init__(self, cpu: int = 2, networks: dict[str, Any] | None = None) -> None:
        self._cpu = cpu
        self._networks = {"blue": True} if networks is None else networks
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
        if name not in self._networks:
            raise LibvirtError(BINDING.VIR_ERR_NO_NETWORK)
        if isinstance(self._networks[name], int) and not isinstance(self._networks[name], bool):
            raise LibvirtError(self._networks[name])
        return SimpleNamespace(isActive=lambda: int(self._networks[name]))


def needs(more: str = "") -> Needs:
    return read_needs(GUEST.format(more=more))


def test_what_a_guest_needs() -> None:
    found = needs()
    assert (found.networks, found.tied, found.passthrough) == (("blue",), False, False)
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
    ],
)  # fmt: skip
def test_what_a_target_lacks(target: Target, more: str, lacks: list[str]) -> None:
    """What it cannot say is no objection."""
    assert list(lacking(BINDING, target, needs(more), "<cpu/>")) == lacks


def test_a_cpu_that_nobody_checks_is_not_compared() -> None:
    xml = GUEST.format(more="").replace("check='full'", "check='none'")
    assert list(lacking(BINDING, Target(cpu=0), read_needs(xml), "")) == []


def test_a_hosts_own_cpu_is_compared_with_the_targets() -> None:
    xml = GUEST.format(more="").replace("mode='custom'", "mode='host-passthrough'")
    target = Target(cpu=0)
    own = host_cpu("<capabilities><host><cpu><arch>x86_64</arch></cpu></host></capabilities>")
    assert list(lacking(BINDING, target, read_needs(xml), own)) == ["its host's CPU, which the guest has as it is"]
    assert target.asked == [("<cpu><arch>x86_64</arch></cpu>",)]
