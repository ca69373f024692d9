"""Agents inside guests: what they tell is bounded, and one that is dead holds up nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hypervisor.fake_libvirt import DB, WEB, WITH_AGENT, FakeLibvirt, Hang, fail
from tests.services import until
from tests.thoroughness import examples
from virtpilot.clock import VirtualClock
from virtpilot.fields import FIELDS
from virtpilot.hypervisor import GuestDetails
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_inside import Inside, read_inside

TOLD: Final[dict[str, Any]] = {
    "fs.count": 3,
    "fs.0.name": "vda1",
    "fs.0.mountpoint": "/",
    "fs.0.fstype": "ext4",
    "fs.0.total-bytes": 1000,
    "fs.0.used-bytes": 250,
    "fs.0.disk.count": 1,
    "fs.1.mountpoint": "/boot",
    "fs.1.total-bytes": 100,
    "fs.1.used-bytes": 0,
    "fs.2.mountpoint": "/old agents tell no sizes",
    "load.1m": 0.5,
    "load.5m": 0.25,
    "load.15m": 0.125,
}
FILESYSTEMS: Final[dict[str, Mapping[str, int | float]]] = {
    "/": {"total_bytes": 1000, "used_bytes": 250, "used_ratio": 0.25},
    "/boot": {"total_bytes": 100, "used_bytes": 0, "used_ratio": 0},
}
LOADS: Final = {"guest_load1_count": 0.5, "guest_load5_count": 0.25, "guest_load15_count": 0.125}


@pytest.fixture
def libvirt() -> FakeLibvirt:
    made = FakeLibvirt()
    made.domains[WEB].xml = WITH_AGENT
    made.domains[WEB].inside = TOLD
    return made


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("fake:///system", clock=clock, deadline_s=0.1, guest_agent_every_s=60, binding=libvirt)
    yield made
    made.close()


def details(hypervisor: LibvirtHypervisor) -> dict[str, GuestDetails]:
    return {guest.uuid: guest.details for guest in hypervisor.guests()}


def test_a_connected_agent_is_asked_now_and_then_and_what_it_told_stands_beside_the_rest(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    assert until(lambda: details(hypervisor)[WEB].filesystems == FILESYSTEMS, 20)
    assert details(hypervisor)[WEB].guest == {"cpu_shares_count": 1024, **LOADS}
    assert details(hypervisor)[DB].filesystems == {}
    assert (libvirt.calls["guestInfo web-1"], libvirt.calls["guestInfo db-1"]) == (1, 0)
    clock.advance(60)
    hypervisor.guests()
    assert until(lambda: libvirt.calls["guestInfo web-1"] == 2, 20)


def test_what_was_told_too_long_ago_is_told_no_more(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    assert until(lambda: details(hypervisor)[WEB].filesystems == FILESYSTEMS, 20)
    libvirt.on["guestInfo web-1"] = fail("Guest agent is not responding")
    clock.advance(180)
    assert details(hypervisor)[WEB].filesystems == FILESYSTEMS
    clock.advance(1)
    assert details(hypervisor)[WEB].filesystems == {}


def test_a_dead_agent_holds_up_neither_a_tick_nor_another_agent(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    libvirt.domains[DB].xml = WITH_AGENT
    libvirt.domains[DB].inside = TOLD
    hang = libvirt.on["guestInfo web-1"] = Hang()
    hypervisor.guests()
    assert hang.begun.wait(20)
    for _ in range(3):
        found = details(hypervisor)
        assert found[WEB].filesystems == {}
    # Left behind after its deadline, the next one is asked.
    assert until(lambda: details(hypervisor)[DB].filesystems == FILESYSTEMS, 20)
    assert libvirt.calls["guestInfo web-1"] == 1
    hang.let_go()


def test_where_libvirt_passes_on_the_load_it_is_asked_for_and_older_agents_are_asked_without(
    clock: VirtualClock,
) -> None:
    class New(FakeLibvirt):
        """libvirt 11.2."""

        VIR_DOMAIN_GUEST_INFO_LOAD = 128

    libvirt = New()
    libvirt.domains[WEB].xml = WITH_AGENT
    libvirt.domains[WEB].inside = TOLD
    libvirt.on["guestInfo web-1"] = fail("unsupported", times=1)
    hypervisor = LibvirtHypervisor("fake:///", clock=clock, guest_agent_every_s=60, binding=libvirt)
    assert until(lambda: details(hypervisor)[WEB].filesystems == FILESYSTEMS, 20)
    hypervisor.close()
    assert libvirt.wanted_inside == [16]
    assert libvirt.calls["guestInfo web-1"] == 2


@pytest.mark.parametrize(
    "odd",
    [
        {"fs.0.mountpoint": "a\nvm cpu_usage_ratio=1"},
        {"fs.0.mountpoint": "/" * 5000},
        {"fs.0.mountpoint": ""},
        {"fs.0.mountpoint": 7},
        {"fs.0.total-bytes": 0},
        {"fs.0.total-bytes": -5},
        {"fs.0.total-bytes": 2**64},
        {"fs.0.total-bytes": 10},
        {"fs.0.used-bytes": True},
        {"fs.0.used-bytes": "250"},
    ],
    ids=str,
)
def test_a_file_system_that_is_odd_is_left_out_and_the_others_are_told(odd: Mapping[str, Any]) -> None:
    assert read_inside({**TOLD, **odd}) == Inside({"/boot": FILESYSTEMS["/boot"]}, LOADS)


def test_so_many_file_systems_are_told_and_no_more() -> None:
    many: dict[str, Any] = {"fs.count": 10_000_000} | {
        f"fs.{index}.{key}": value
        for index in range(100)
        for key, value in (("mountpoint", f"/{index}"), ("total-bytes", 2), ("used-bytes", 1))
    }
    assert len(read_inside(many).filesystems) == 32


values = st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.booleans(), st.none())


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(TOLD)), st.text(max_size=8)), values))
def test_whatever_an_agent_tells_gives_declared_fields_with_numbers(told: dict[str, Any]) -> None:
    found = read_inside(TOLD | told)
    assert all(("vm", name) in FIELDS and 0 <= number < 2**63 for name, number in found.guest.items())
    for numbers in found.filesystems.values():
        assert all(("vm_filesystem", name) in FIELDS for name in numbers)
        assert 0 <= numbers["used_bytes"] <= numbers["total_bytes"]
