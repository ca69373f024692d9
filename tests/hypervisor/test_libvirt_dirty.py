"""Dirty rates: measured now and then, never while a job runs on the guest, and no guest holds up another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hypervisor.fake_libvirt import DB, WEB, FakeLibvirt, Hang, fail
from virtpilot.clock import VirtualClock
from virtpilot.libvirt_host import LibvirtHypervisor

EVERY_S = 100
CALLS = ("startDirtyRateCalc web-1", "startDirtyRateCalc db-1")


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("fake:///system", clock=clock, deadline_s=0.1, dirty_rate_every_s=EVERY_S, binding=libvirt)
    yield made
    made.close()


def ticks(hypervisor: LibvirtHypervisor, clock: VirtualClock, number: int) -> None:
    for _ in range(number):
        hypervisor.guests()
        clock.advance(10)


def started(libvirt: FakeLibvirt) -> list[int]:
    return [libvirt.calls[call] for call in CALLS]


def test_each_guest_is_measured_once_in_the_interval(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    ticks(hypervisor, clock, 11)
    assert started(libvirt) == [1, 1]
    for domain in libvirt.domains.values():
        domain.stats |= {"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 3}
    ticks(hypervisor, clock, 10)
    assert started(libvirt) == [2, 2]


def test_a_result_is_read_once_and_told_with_its_age_until_it_is_too_old(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    libvirt.domains[DB].job = {"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED}  # its turn comes when the other's has come
    while not started(libvirt)[0]:
        ticks(hypervisor, clock, 1)
    libvirt.domains[DB].job = {"type": libvirt.VIR_DOMAIN_JOB_NONE}
    while not started(libvirt)[1]:
        ticks(hypervisor, clock, 1)
    assert started(libvirt) == [1, 1]
    dirty_rate = libvirt.VIR_DOMAIN_STATS_DIRTYRATE
    libvirt.wanted.clear()
    libvirt.domains[WEB].stats |= {"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 3}
    libvirt.domains[DB].stats |= {"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": -1}
    told = {guest.uuid: guest.details.guest for guest in hypervisor.guests()}
    assert told[WEB].items() >= {"memory_dirty_bytes_per_second": 3 * 2**20, "memory_dirty_age_seconds": 0}.items()
    assert "memory_dirty_bytes_per_second" not in told[DB]
    clock.advance(10)
    libvirt.domains[DB].stats["dirtyrate.megabytes_per_second"] = 0
    told = {guest.uuid: guest.details.guest for guest in hypervisor.guests()}
    assert (told[WEB]["memory_dirty_age_seconds"], told[DB]["memory_dirty_bytes_per_second"]) == (10, 0)
    hypervisor.guests()
    # Read while a result was missing, no longer.
    assert [bool(wanted & dirty_rate) for wanted in libvirt.wanted] == [True, True, False]
    libvirt.on = {call: fail("not just now") for call in CALLS}
    clock.advance(3 * EVERY_S + 1)
    assert all("memory_dirty_bytes_per_second" not in guest.details.guest for guest in hypervisor.guests())


def test_nothing_is_started_while_a_job_runs_on_the_guest_nor_while_it_does_not_run(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    libvirt.domains[WEB].job = {"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED}
    libvirt.domains[DB].stats["state.state"] = 3
    ticks(hypervisor, clock, 30)
    assert started(libvirt) == [0, 0]
    libvirt.domains[WEB].job = {"type": libvirt.VIR_DOMAIN_JOB_NONE}
    ticks(hypervisor, clock, 1)
    assert started(libvirt) == [1, 0]


def test_a_guest_that_cannot_be_measured_is_asked_once_in_the_interval(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    libvirt.on[CALLS[0]] = fail("this QEMU does not calculate dirty rates", libvirt.VIR_ERR_NO_SUPPORT)
    ticks(hypervisor, clock, 31)
    assert started(libvirt)[0] == 3


def test_a_stuck_guest_is_not_asked_and_one_whose_start_hangs_is_passed_over(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    stuck = libvirt.domains[WEB].stuck = Hang()
    start = libvirt.on[CALLS[1]] = Hang()
    ticks(hypervisor, clock, 12)
    assert started(libvirt)[0] == 0
    names = {guest.name: guest.age_s for guest in hypervisor.guests()}
    assert names["db-1"] == 0
    stuck.let_go()
    start.let_go()


def test_a_libvirt_that_cannot_measure_is_not_asked(
    libvirt: FakeLibvirt, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeLibvirt, "VIR_DOMAIN_STATS_DIRTYRATE")  # libvirt before 7.2
    hypervisor = LibvirtHypervisor("fake:///", clock=clock, dirty_rate_every_s=EVERY_S, binding=libvirt)
    ticks(hypervisor, clock, 11)
    hypervisor.close()
    assert started(libvirt) == [0, 0]


def test_an_interval_of_0_means_never(libvirt: FakeLibvirt, clock: VirtualClock) -> None:
    hypervisor = LibvirtHypervisor("fake:///", clock=clock, dirty_rate_every_s=0, binding=libvirt)
    ticks(hypervisor, clock, 11)
    hypervisor.close()
    assert started(libvirt) == [0, 0]
