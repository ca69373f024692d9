"""Reading guests under faults: no guest holds up or hides another, what is absent stays absent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
import structlog.testing

from tests.hypervisor.fake_libvirt import DB, STATS, WEB, FakeDomain, FakeLibvirt, Hang, fail
from tests.services import until
from virtpilot.clock import VirtualClock
from virtpilot.errors import HypervisorError, HypervisorUnavailable, KnobUnsupported
from virtpilot.hypervisor import GuestDetails, GuestStats
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_reader import Patience
from virtpilot.libvirt_tags import TAGS_NAMESPACE

TAGS: Final = f'<tags xmlns="{TAGS_NAMESPACE}" tier="batch" secret="no"/>'


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor(
        "fake:///system", clock=clock, deadline_s=0.1, tag_names=frozenset({"tier"}), binding=libvirt
    )
    yield made
    made.close()


def by_name(hypervisor: LibvirtHypervisor) -> dict[str, GuestStats]:
    return {guest.name: guest for guest in hypervisor.guests()}


def test_all_guests_come_by_one_bulk_call(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.domains[WEB].metadata_text = TAGS
    found = by_name(hypervisor)
    shares = GuestDetails({"cpu_shares_count": 1024})
    assert found["web-1"] == GuestStats(WEB, "web-1", STATS, {"cpu_shares": 1024}, {"tier": "batch"}, 1, 0.0, shares)
    assert found["db-1"].tags == {}
    assert (libvirt.calls["getAllDomainStats"], libvirt.calls["domainListGetStats web-1"]) == (1, 0)


def test_a_guest_that_is_off_has_no_cpu_time_whatever_libvirt_tells(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.domains[DB].run = -1
    assert by_name(hypervisor)["db-1"].stats == {name: value for name, value in STATS.items() if name != "cpu.time"}


def test_a_stuck_guest_is_told_in_part_and_ages_and_the_others_are_whole(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    hang = libvirt.domains[DB].stuck = Hang(times=1)
    with structlog.testing.capture_logs() as logs:
        for tick in range(8):
            found = by_name(hypervisor)
            assert (found["web-1"].stats, found["web-1"].age_s) == (STATS, 0)
            assert "balloon.rss" not in found["db-1"].stats
            assert (found["db-1"].stats["cpu.time"], found["db-1"].age_s) == (5, tick * 10)
            clock.advance(10)
        # One call hangs with the guest for all that time; libvirt passes over it in the others.
        assert libvirt.calls["getAllDomainStats"] == 9
        hang.let_go()
        assert until(lambda: by_name(hypervisor)["db-1"].age_s == 0, 20)
    assert by_name(hypervisor)["db-1"].stats == STATS
    assert [entry["event"] for entry in logs] == [
        "a guest holds up libvirt's statistics",
        "libvirt's statistics come whole again",
    ]


def test_several_guests_that_get_stuck_at_once_cost_a_call_each(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    extra = {f"{number:08}-0000-4000-8000-000000000000": f"app-{number}" for number in range(3)}
    libvirt.domains |= {uuid: FakeDomain(libvirt, uuid, name, STATS) for uuid, name in extra.items()}
    stuck = [libvirt.domains[uuid] for uuid in extra]
    hangs = [Hang(times=1) for _ in stuck]
    for domain, hang in zip(stuck, hangs, strict=True):
        domain.stuck = hang
    found = by_name(hypervisor)
    assert [name for name, guest in found.items() if guest.stats == STATS] == ["web-1", "db-1"]
    assert libvirt.calls["getAllDomainStats"] == 4
    for hang in hangs:
        hang.let_go()


def test_where_all_statistics_hang_what_no_guest_can_hold_up_is_left(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    hang = libvirt.on["getAllDomainStats of QEMU"] = Hang()
    for tick in range(8):
        found = by_name(hypervisor)
        # What QEMU itself would have to be asked for is absent, the rest is there.
        assert found["db-1"].stats.keys() == {"state.state", "state.reason", "cpu.time", "net.count"}
        assert (found["web-1"].knobs["cpu_shares"], found["web-1"].age_s) == (1024, tick)
        clock.advance(1)
    assert libvirt.calls["getAllDomainStats of QEMU"] <= 5
    hang.let_go()
    libvirt.on.clear()
    assert until(lambda: by_name(hypervisor)["db-1"].stats == STATS, 20)


def test_a_slow_libvirt_is_waited_for_once_it_is_known_to_be_slow() -> None:
    patience = Patience(deadline_s=5.0)
    assert patience.seconds() == 5.0  # nothing is known yet
    for _ in range(7):
        patience.note(0.01)
    assert patience.seconds() == 0.25
    for _ in range(3):
        patience.note(0.8)
    assert patience.seconds() == 0.25
    patience.note(0.9)
    assert patience.seconds() == pytest.approx(3.2)
    for _ in range(7):
        patience.note(2.0)
    assert patience.seconds() == 5.0
    patience.note(3600)  # that one was held up by a guest
    assert patience.seconds() == 5.0


def test_one_guest_that_fails_the_bulk_call_is_left_out_and_counted(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.on["getAllDomainStats"] = fail("internal error: unable to parse the monitor's answer")
    libvirt.on["domainListGetStats web-1"] = fail("internal error: unable to parse the monitor's answer")
    assert by_name(hypervisor).keys() == {"db-1"}
    assert hypervisor.skipped == 1
    libvirt.on.clear()
    assert by_name(hypervisor).keys() == {"db-1", "web-1"}
    assert hypervisor.skipped == 1


def test_a_guest_that_vanishes_between_listing_and_reading_is_left_out_and_counted(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.on["getAllDomainStats"] = fail("internal error")
    libvirt.on["domainListGetStats db-1"] = lambda: (libvirt.domains.pop(DB, None), None)[1]
    assert by_name(hypervisor).keys() == {"web-1"}
    assert hypervisor.skipped == 1


def test_a_guest_that_vanishes_before_its_details_are_read_is_told_without_them(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    def vanish() -> None:
        libvirt.domains.pop(DB, None)

    libvirt.on["XMLDesc"] = vanish
    found = by_name(hypervisor)
    assert (found["db-1"].knobs, found["web-1"].knobs) == ({}, {"cpu_shares": 1024})
    assert by_name(hypervisor).keys() == {"web-1"}


def test_a_driver_without_bulk_statistics_is_asked_guest_by_guest(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.on["getAllDomainStats"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    libvirt.on["blockStats"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    libvirt.domains[DB].stats["state.state"] = 5
    libvirt.domains[DB].run = -1
    found = by_name(hypervisor)
    assert found["web-1"].stats == {
        "state.state": 1, "state.reason": 1, "balloon.maximum": 2048, "balloon.current": 1024, "vcpu.current": 1,
        "vcpu.maximum": 1, "cpu.time": 6_000_000_000, "cpu.user": 4, "cpu.system": 2, "balloon.rss": 99,
    }  # fmt: skip
    assert found["db-1"].stats.keys() == {
        "state.state", "state.reason", "balloon.maximum", "balloon.current", "vcpu.current", "vcpu.maximum",
    }  # fmt: skip
    del libvirt.on["blockStats"]
    stats = by_name(hypervisor)["web-1"].stats
    assert (stats["net.0.name"], stats["net.0.tx.errs"], "net.0.tx.drop" in stats) == ("vnet0", 7, False)
    assert (stats["block.0.name"], stats["block.0.wr.bytes"], "block.0.errors" in stats) == ("vda", 4, False)


@pytest.mark.parametrize(
    "xml",
    [
        "<!DOCTYPE a [<!ENTITY b 'c'>]><domain><devices><disk><target dev='&b;'/></disk></devices></domain>",
        "<domain><devices><disk><target dev=",
        "<domain>" + " " * 5_000_000 + "</domain>",
        "",
    ],
    ids=["entities", "cut", "huge", "none"],
)
def test_a_guests_own_xml_is_not_trusted(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, xml: str) -> None:
    libvirt.on["getAllDomainStats"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    libvirt.domains[WEB].xml = xml
    found = by_name(hypervisor)
    assert "block.count" not in found["web-1"].stats
    assert found["db-1"].stats["block.count"] == 1


@pytest.mark.parametrize(
    "text",
    [
        f'<!DOCTYPE a [<!ENTITY b "batch">]><tags xmlns="{TAGS_NAMESPACE}" tier="&b;"/>',
        f'<tags xmlns="{TAGS_NAMESPACE}" tier="{"x" * 20_000}"/>',
        f'<tags xmlns="{TAGS_NAMESPACE}" tier="a&#10;b"/>',
        "tier=batch",
        "",
    ],
    ids=["entities", "huge", "line-feed", "no-xml", "empty"],
)
def test_hostile_metadata_gives_no_tags(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, text: str) -> None:
    libvirt.domains[WEB].metadata_text = text
    assert by_name(hypervisor)["web-1"].tags == {}


def test_knobs_and_tags_are_asked_for_seldom(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    asked: list[tuple[int, int, int]] = []
    for _ in range(21):
        hypervisor.guests()
        calls = libvirt.calls
        asked.append((calls["XMLDesc"], calls["schedulerParametersFlags"], calls["metadata"]))
        clock.advance(30)
    # Two guests, every 30 s: limits each minute, what only control groups tell and tags each ten minutes.
    assert [limits for limits, _, _ in asked] == [2 + index // 2 * 2 for index in range(21)]
    assert [(schedules, tags) for _, schedules, tags in asked] == [(2, 2)] * 20 + [(4, 4)]


def test_a_changed_description_has_the_schedule_read_again(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    hypervisor.guests()
    libvirt.domains[WEB].xml = libvirt.domains[WEB].xml.replace("<domain", "<domain changed='yes'", 1)
    clock.advance(60)
    hypervisor.guests()
    assert libvirt.calls["schedulerParametersFlags"] == 3


def test_many_guests_details_are_spread_over_ticks_those_never_asked_first(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    def dear() -> None:
        clock.advance(0.4)

    extra = {f"{number:08}-0000-4000-8000-000000000000": f"app-{number}" for number in range(4)}
    libvirt.domains |= {uuid: FakeDomain(libvirt, uuid, name, STATS) for uuid, name in extra.items()}
    libvirt.on["XMLDesc"] = dear
    known = [sum(bool(guest.knobs) for guest in hypervisor.guests()) for _ in range(4)]
    assert known == [2, 4, 6, 6]
    assert libvirt.calls["XMLDesc"] == 6


def test_a_knob_that_was_set_is_seen_at_once(hypervisor: LibvirtHypervisor) -> None:
    hypervisor.guests()
    hypervisor.set_knob(WEB, "cpu_shares", 4096)
    assert hypervisor.get_knob(WEB, "cpu_shares") == 4096
    assert by_name(hypervisor)["web-1"].knobs == {"cpu_shares": 4096}


def test_a_guest_that_is_off_is_not_even_asked_for_its_knobs(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    """Libvirt's LXC driver crashes when it is."""
    libvirt.domains[WEB].run = -1  # it ends between being read and being asked
    hypervisor.guests()
    with pytest.raises(KnobUnsupported):
        hypervisor.get_knob(WEB, "cpu_shares")
    with pytest.raises(HypervisorError, match="not running"):
        hypervisor.set_knob(WEB, "cpu_shares", 2048)
    assert libvirt.calls["schedulerParametersFlags"] == 1  # the other one's
    assert libvirt.calls["setSchedulerParametersFlags"] == 0


def test_what_was_known_of_another_run_of_a_guest_is_forgotten(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    hypervisor.guests()
    libvirt.domains[WEB].run = 2
    libvirt.domains[WEB].shares = 77
    found = by_name(hypervisor)
    assert (found["web-1"].run, found["web-1"].knobs) == (2, {"cpu_shares": 77})


def test_what_another_libvirtd_told_is_forgotten(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    hypervisor.guests()
    libvirt.domains[WEB].shares = 77
    libvirt.cut()
    hypervisor.guests()
    assert by_name(hypervisor)["web-1"].knobs == {"cpu_shares": 77}


def test_details_that_hang_cost_no_guest(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    hang = libvirt.on["metadata"] = Hang()
    with structlog.testing.capture_logs() as logs:
        found = by_name(hypervisor)
    hang.let_go()
    assert found.keys() == {"web-1", "db-1"}
    assert {entry["event"] for entry in logs} == {"a guest does not answer and is passed over"}


def test_a_driver_without_shares_has_no_such_knob(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.domains[WEB].shares = None
    libvirt.domains[DB].stats["state.state"] = 5
    found = by_name(hypervisor)
    assert (found["web-1"].knobs, found["db-1"].knobs) == ({}, {})


def test_without_libvirtd_reading_says_so_and_goes_on_when_it_is_back(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    hypervisor.guests()
    libvirt.cut()
    libvirt.on["open"] = fail("Failed to connect socket", libvirt.VIR_ERR_SYSTEM_ERROR)
    with pytest.raises(HypervisorUnavailable):
        hypervisor.guests()
    libvirt.on.clear()
    clock.advance(1)
    assert by_name(hypervisor).keys() == {"web-1", "db-1"}


def test_any_stats_are_passed_on_as_they_are(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    odd: dict[str, Any] = {"state.state": 1, "vcpu.0.delay": -1, "block.0.name": "x" * 10_000}
    libvirt.domains[WEB].stats = odd
    assert by_name(hypervisor)["web-1"].stats == odd


def test_a_few_guests_are_asked_alone(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    assert hypervisor.some([WEB]) == []  # nobody is known yet
    whole = by_name(hypervisor)
    libvirt.calls.clear()
    assert hypervisor.some([WEB, "unheard-of"]) == [whole["web-1"]]
    assert (libvirt.calls["getAllDomainStats"], libvirt.calls["domainListGetStats db-1"]) == (0, 0)
    libvirt.domains[WEB].run = 2
    assert hypervisor.some([WEB]) == []  # started since: what is set on it is not known
    hypervisor.guests()
    assert [guest.run for guest in hypervisor.some([WEB])] == [2]


def test_a_stuck_guest_among_a_few_is_left_out_and_the_others_are_told(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    hypervisor.guests()
    libvirt.domains[WEB].stuck = hang = Hang()
    try:
        assert [guest.name for guest in hypervisor.some([WEB, DB])] == ["db-1"]
        libvirt.calls.clear()
        assert [guest.name for guest in hypervisor.some([WEB, DB])] == ["db-1"]
        assert libvirt.calls["domainListGetStats web-1"] == 0  # passed over for a while
    finally:
        hang.let_go()
