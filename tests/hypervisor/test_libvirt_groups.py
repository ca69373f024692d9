"""Which groups of statistics libvirt is asked for: not those that nobody has, nor those that it does not know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hypervisor.fake_libvirt import STATS, WEB, FakeLibvirt, FakeLibvirtError, Hang
from tests.services import until
from virtpilot.clock import VirtualClock
from virtpilot.hypervisor import GuestStats
from virtpilot.libvirt_host import LibvirtHypervisor


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("fake:///system", clock=clock, deadline_s=0.1, binding=libvirt)
    yield made
    made.close()


def by_name(hypervisor: LibvirtHypervisor) -> dict[str, GuestStats]:
    return {guest.name: guest for guest in hypervisor.guests()}


def test_groups_that_no_guest_has_are_asked_for_every_five_minutes_and_after_a_change(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    optional = libvirt.VIR_DOMAIN_STATS_PERF | libvirt.VIR_DOMAIN_STATS_IOTHREAD
    for _ in range(31):
        hypervisor.guests()
        clock.advance(10)
    assert [wanted & optional for wanted in libvirt.wanted] == [optional, *[0] * 29, optional]
    libvirt.domains[WEB].stats |= {"iothread.count": 1, "iothread.1.poll-max-ns": 32768}
    libvirt.domains[WEB].xml = libvirt.domains[WEB].xml.replace("</domain>", "<iothreads>1</iothreads></domain>")
    libvirt.wanted.clear()
    for _ in range(8):
        hypervisor.guests()
        clock.advance(10)
    iothreads = libvirt.VIR_DOMAIN_STATS_IOTHREAD
    # the XML is read once a minute
    assert [wanted & optional for wanted in libvirt.wanted] == [*[0] * 6, optional, iothreads]


def test_groups_that_a_held_up_guest_may_have_are_asked_for_again_soon(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    optional = libvirt.VIR_DOMAIN_STATS_PERF | libvirt.VIR_DOMAIN_STATS_IOTHREAD
    libvirt.domains[WEB].stats |= {"iothread.count": 1, "iothread.1.poll-max-ns": 32768}
    hang = libvirt.on["getAllDomainStats of QEMU"] = Hang()
    assert "iothread.count" not in by_name(hypervisor)["web-1"].stats
    hang.let_go()
    libvirt.on.clear()
    libvirt.wanted.clear()
    assert until(lambda: by_name(hypervisor)["db-1"].stats == STATS, 20)
    clock.advance(11)
    assert "iothread.count" in by_name(hypervisor)["web-1"].stats
    assert libvirt.wanted[-1] & optional == optional


def test_a_libvirt_that_refuses_newer_groups_is_asked_for_the_old_ones_from_then_on(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    def refuse() -> None:
        if libvirt.wanted[-1] & libvirt.VIR_DOMAIN_STATS_PERF:
            raise FakeLibvirtError("invalid argument: Stats types bits 0x40", libvirt.VIR_ERR_INVALID_ARG)

    libvirt.on["getAllDomainStats of QEMU"] = refuse
    for _ in range(3):
        assert by_name(hypervisor)["db-1"].stats == STATS
    core = libvirt.wanted[-1]
    assert libvirt.wanted == [core | 64 | 128, core, core, core]
