"""Walking over guests: one that hangs is left behind and passed over for ever longer, the others are asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import pytest
import structlog.testing

from tests.hypervisor.fake_libvirt import DB, STATS, WEB, FakeDomain, FakeLibvirt, Hang, fail
from tests.services import until
from virtpilot.clock import VirtualClock
from virtpilot.errors import HypervisorUnavailable
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_walk import Walk

APP: Final = "00000000-0000-4000-8000-000000000003"
ALL: Final = (WEB, DB, APP)
PATIENCE_S: Final = 0.05


@pytest.fixture
def libvirt() -> FakeLibvirt:
    made = FakeLibvirt()
    made.domains[APP] = FakeDomain(made, APP, "app-1", STATS)
    return made


@pytest.fixture
def link(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtLink]:
    made = LibvirtLink("fake:///system", binding=libvirt, clock=clock, deadline_s=5.0)
    yield made
    made.close()


def name_of(connection: Any, uuid: str) -> str:
    domain = connection.lookupByUUIDString(uuid)
    if domain.stuck is not None:
        domain.stuck()
    return str(domain.name())


def test_all_are_asked_in_one_call(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    walked = Walk(link, Lane.DETAILS).over(ALL, name_of)
    assert walked == ({WEB: "web-1", DB: "db-1", APP: "app-1"}, frozenset(), frozenset())
    assert libvirt.calls["open"] == 1


def test_who_hangs_is_passed_over_for_ever_longer_and_the_others_are_asked(
    link: LibvirtLink, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    walk = Walk(link, Lane.STATS, patience_s=PATIENCE_S)
    asked_s: list[float] = []
    with structlog.testing.capture_logs() as logs:
        for second in range(80):
            hang = libvirt.domains[DB].stuck = Hang()
            walked = walk.over(ALL, name_of)
            assert (walked.found, walked.hung) == ({WEB: "web-1", APP: "app-1"}, frozenset({DB}))
            if hang.begun.is_set():
                asked_s.append(second)
            hang.let_go()
            assert until(lambda: not link.crowded(Lane.STATS), 20)
            clock.advance(1)
        libvirt.domains[DB].stuck = None
        clock.advance(100)
        walked = walk.over(ALL, name_of)
    assert [later - earlier for earlier, later in pairwise(asked_s)] == [10, 20, 40]
    assert (walked.found[DB], walked.hung) == ("db-1", frozenset())
    assert [entry["event"] for entry in logs] == ["a guest does not answer and is passed over", "a guest answers again"]


def test_one_that_was_left_behind_asks_no_more_when_it_comes_back(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    hang = libvirt.domains[WEB].stuck = Hang(times=1)
    assert Walk(link, Lane.STATS, patience_s=PATIENCE_S).over(ALL, name_of).found.keys() == {DB, APP}
    hang.let_go()
    assert until(lambda: libvirt.connections[0].closed, 20)
    assert libvirt.calls["lookupByUUIDString"] == 3


def test_who_has_gone_is_told_apart(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    del libvirt.domains[DB]
    walked = Walk(link, Lane.DETAILS).over(ALL, name_of)
    assert walked == ({WEB: "web-1", APP: "app-1"}, frozenset({DB}), frozenset())


def test_slow_guests_that_answer_are_no_hanging_ones(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    """Each has the patience to itself: together they may take longer."""
    taken: list[Any] = []

    def slow(connection: Any, uuid: str) -> str:
        Hang(times=1).wait(PATIENCE_S * 0.6)
        taken.append(uuid)
        return name_of(connection, uuid)

    walked = Walk(link, Lane.DETAILS, patience_s=PATIENCE_S).over(ALL * 3, slow)
    assert (len(taken), len(walked.found), walked.hung) == (9, 3, frozenset())


def test_what_the_budget_does_not_hold_is_left_for_the_next_time(link: LibvirtLink, clock: VirtualClock) -> None:
    walk = Walk(link, Lane.DETAILS, budget_s=1.0)

    def dear(connection: Any, uuid: str) -> str:
        clock.advance(0.6)
        return name_of(connection, uuid)

    walked = walk.over(ALL, dear)
    assert (list(walked.found), walked.gone, walked.hung) == ([WEB, DB], frozenset(), frozenset())


def test_where_too_many_hang_already_no_guest_is_blamed(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    hangs = [Hang() for _ in ALL]
    for uuid, hang in zip(ALL, hangs, strict=True):
        libvirt.domains[uuid].stuck = hang
    walk = Walk(link, Lane.DETAILS, patience_s=PATIENCE_S)
    assert walk.over(ALL, name_of).hung == set(ALL)
    assert link.crowded(Lane.DETAILS)
    other = Walk(link, Lane.DETAILS, patience_s=PATIENCE_S).over(ALL, name_of)
    assert other == ({}, frozenset(), frozenset())
    for hang in hangs:
        hang.let_go()


def test_a_connection_lost_on_the_way_is_replaced_and_all_are_asked_anew(
    link: LibvirtLink, libvirt: FakeLibvirt
) -> None:
    def cut() -> None:
        if libvirt.calls["lookupByUUIDString"] == 2:
            libvirt.cut()
            fail("end of file")()

    libvirt.on["lookupByUUIDString"] = cut
    walked = Walk(link, Lane.DETAILS).over(ALL, name_of)
    assert walked.found.keys() == set(ALL)
    libvirt.on["open"] = fail("Failed to connect socket")
    libvirt.cut()
    with pytest.raises(HypervisorUnavailable):
        Walk(link, Lane.DETAILS).over(ALL, name_of)


def test_a_driver_without_bulk_statistics_has_no_guest_that_holds_up_another(
    libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    libvirt.driver = "LXC"
    libvirt.on["getAllDomainStats"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    hypervisor = LibvirtHypervisor("fake:///", clock=clock, deadline_s=PATIENCE_S, binding=libvirt)
    hang = Hang(times=1)
    libvirt.domains[DB].stuck_state = hang
    for tick in range(3):
        found = {guest.name: guest for guest in hypervisor.guests()}
        assert found.keys() == {"web-1", "db-1", "app-1"}
        assert found["app-1"].stats["cpu.time"] == 6_000_000_000
        assert (found["app-1"].age_s, found["db-1"].age_s, found["db-1"].stats) == (0, tick, {})
        assert hypervisor.skipped == tick + 1
        clock.advance(1)
    hang.let_go()
    clock.advance(30)
    found = {guest.name: guest for guest in hypervisor.guests()}
    assert (found["db-1"].age_s, found["db-1"].stats["state.state"]) == (0, 1)
    hypervisor.close()
