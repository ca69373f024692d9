"""The agent's events: whose doing each is, what the knobs show, and what becomes of them while the broker is away."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from virtpilot.actuators.knob import FOREIGN
from virtpilot.clock import SECOND, VirtualClock, seconds
from virtpilot.events import By, Event, EventKind
from virtpilot.hypervisor import GuestEvent
from virtpilot.model import Outcome, Result, Sample
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.event_desk import MAX_WAITING, EventDesk
from virtpilot.topics import Topics

GUEST = "5f0a1b5e-0000-4000-8000-000000000001"
NOW = 1_700_000_000 * SECOND


class Told:
    """A hypervisor that tells what the test gives it."""

    def __init__(self) -> None:
        self.waiting: list[GuestEvent] = []

    def drain(self) -> list[GuestEvent]:
        found, self.waiting = self.waiting, []
        return found


class Commands:
    """By which commands guests leave, and are brought here."""

    def __init__(self) -> None:
        self.leaving: dict[str, str] = {}
        self.coming: dict[str, str] = {}

    def moving(self, guest: str) -> str:
        return self.leaving.get(guest, "")

    def came_by(self, guest: str) -> str:
        return self.coming.get(guest, "")


class Site:
    """A desk on a bus, and somebody who reads what it says."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(VirtualClock())
        self.source = Told()
        self.moves = Commands()
        self._reader = self.broker.connect("reader")
        self._reader.subscribe("virtpilot/c/events/+")
        self.desk = EventDesk(
            bus=self.broker.connect("agent"),
            topics=Topics("c"),
            host="h1",
            source=self.source,
            moves=self.moves,
        )

    def told(self, *events: GuestEvent) -> list[Sample]:
        self.source.waiting += events
        samples = self.desk.collect()
        self.desk.flush(NOW)
        return samples

    def heard(self) -> list[Event]:
        found = []
        while (delivery := self._reader.receive(0)) is not None:
            assert delivery.message.topic == "virtpilot/c/events/h1"
            found.append(msgspec.json.decode(delivery.message.payload, type=Event))
            delivery.ack()
        return found

    def event(self) -> Event:
        (found,) = self.heard()
        return found


@pytest.fixture
def site() -> Site:
    return Site()


def happened(kind: EventKind, detail: str = "", at_ns: int = NOW, **numbers: float) -> GuestEvent:
    return GuestEvent(at_ns=at_ns, kind=kind, guest=GUEST, name="web-1", detail=detail, numbers=numbers)


def done(action: str, result: Result = Result.DONE, **after: float) -> Outcome:
    return Outcome(
        id="oc-1", cause="cm-1", command="cm-1", host="h1", guest=GUEST, result=result, at_ns=NOW, action=action,
        after=after,
    )  # fmt: skip


def knob(value: int, at_ns: int = NOW, **more: float) -> Sequence[Sample]:
    tags = {"host": "h1", "vm": GUEST, "name": "web-1"}
    knobs = {"cpu_shares": value, **more}
    return [
        Sample("knob", {**tags, "knob": name}, {"value_count": number, "leased_count": 0}, at_ns)
        for name, number in knobs.items()
    ]


def test_what_nobody_commanded_is_somebody_elses_doing(site: Site) -> None:
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", cpu_shares=512))
    event = site.event()
    assert (event.by, event.cause, event.numbers) == (By.OTHER, "", {"cpu_shares": 512})
    assert (event.host, event.guest, event.name, event.at_ns) == ("h1", GUEST, "web-1", NOW)


@pytest.mark.parametrize("result", [Result.DONE, Result.REVERTED])
def test_the_echo_of_an_own_change_bears_its_command(site: Site, result: Result) -> None:
    site.desk.own([done("set cpu_shares", result, cpu_shares=2048)], NOW)
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", cpu_shares=2048))
    assert [(e.by, e.cause) for e in site.heard()] == [(By.VIRTPILOT, "cm-1")]
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", NOW + 1, cpu_shares=2000))
    assert [(e.by, e.cause) for e in site.heard()] == [(By.OTHER, "")]


def test_an_echo_that_comes_much_too_late_is_none(site: Site) -> None:
    site.desk.own([done("set cpu_shares", cpu_shares=2048)], NOW)
    site.desk.own([], NOW + 61 * SECOND)
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", cpu_shares=2048))
    assert site.event().by is By.OTHER


def test_an_echo_is_known_also_when_an_earlier_time_was_given_in_between(site: Site) -> None:
    """Parts of one step of the agent have the time of its beginning, others that of a message in it."""
    site.desk.own([done("set cpu_shares", cpu_shares=2048)], NOW + SECOND)
    site.desk.own([], NOW)
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", cpu_shares=2048))
    assert site.event().by is By.VIRTPILOT


def test_a_lease_that_yielded_makes_nobody_elses_change_our_own(site: Site) -> None:
    """The outcome tells the value that somebody set: an event that comes after it is still theirs."""
    yielded = done("release cpu_shares", Result.REVERTED, cpu_shares=512)
    site.desk.own([msgspec.structs.replace(yielded, guard=FOREIGN)], NOW)
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", cpu_shares=512))
    assert site.event().by is By.OTHER


def test_a_guest_that_is_brought_here_is_known_to_be_our_doing_from_its_start_on(site: Site) -> None:
    """Its note says so; what libvirt tells of it next needs no note any more."""
    site.moves.coming[GUEST] = "cm-7"
    site.told(happened(EventKind.STARTED, "migrated"))
    site.moves.coming.clear()
    site.told(happened(EventKind.RESUMED, "migrated"), happened(EventKind.DEFINED, "added"))
    assert [(e.kind, e.by, e.cause) for e in site.heard()] == [
        (kind, By.VIRTPILOT, "cm-7") for kind in ("started", "resumed", "defined")
    ]


def test_so_is_one_that_goes_on_here_a_long_time_after_it_began_to_come(site: Site) -> None:
    site.moves.coming[GUEST] = "cm-7"
    site.told(happened(EventKind.STARTED, "migrated"))
    site.desk.own([], NOW + 100 * SECOND)
    site.told(happened(EventKind.RESUMED, "postcopy", NOW + 100 * SECOND))
    assert [event.cause for event in site.heard()] == ["cm-7", "cm-7"]


def test_who_else_brings_a_guest_here_is_somebody_else(site: Site) -> None:
    """Also where we took it away from here a moment ago."""
    site.desk.own([done("migrate")], NOW)
    site.told(happened(EventKind.STARTED, "migrated"), happened(EventKind.RESUMED, "migrated"))
    assert {event.by for event in site.heard()} == {By.OTHER}


def test_a_guest_that_boots_does_so_by_no_note(site: Site) -> None:
    site.moves.coming[GUEST] = "cm-7"
    site.told(happened(EventKind.STARTED, "booted"))
    assert site.event().by is By.OTHER


def test_an_own_migration_is_known_while_it_runs_and_just_after_its_end(site: Site) -> None:
    site.moves.leaving[GUEST] = "cm-7"
    site.told(happened(EventKind.SUSPENDED, "migrated"), happened(EventKind.WATCHDOG, "reset"))
    site.moves.leaving.clear()
    site.desk.own([done("migrate", downtime_seconds=0.1)], NOW)
    site.told(happened(EventKind.STOPPED, "migrated"))
    assert [(e.kind, e.cause) for e in site.heard()] == [("suspended", "cm-7"), ("watchdog", ""), ("stopped", "cm-1")]


def test_a_knob_found_different_is_told_once(site: Site) -> None:
    for value in (1024, 1024, 700, 700):
        site.desk.see(knob(value))
    site.desk.flush(NOW)
    assert [(e.kind, e.detail, e.numbers) for e in site.heard()] == [("knob_changed", "seen", {"cpu_shares": 700})]


def test_a_change_that_was_told_is_not_found_again_in_the_samples(site: Site) -> None:
    site.desk.see(knob(1024))
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", cpu_shares=700))
    site.desk.see(knob(1024))  # not read anew yet
    site.desk.see(knob(700))
    site.desk.flush(NOW)
    assert len(site.heard()) == 1
    site.desk.see(knob(1024))
    site.desk.flush(NOW)
    assert site.event().numbers == {"cpu_shares": 1024}


def test_a_limit_that_no_event_tells_of_is_found_when_it_is_read(site: Site) -> None:
    limit = {"vnet0.inbound_average": 1e6}
    for limits in ({}, {}, limit, limit, {"memory_hard_limit": 2e9}):
        site.desk.see(knob(1024, NOW, **limits))
    site.desk.flush(NOW)
    assert [(event.detail, event.numbers) for event in site.heard()] == [
        ("seen", limit),
        ("seen no-vnet0.inbound_average", {"memory_hard_limit": 2e9}),
    ]


def test_a_limit_whose_end_was_told_is_not_missed_again(site: Site) -> None:
    site.desk.see(knob(1024, vcpu_quota=50_000))
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", vcpu_quota=-1))
    site.desk.see(knob(1024))
    site.desk.flush(NOW)
    assert site.event().numbers == {"vcpu_quota": -1}


def test_a_period_that_comes_and_goes_with_its_quota_is_nobodys_change(site: Site) -> None:
    """It is read with the quota only; changed beside one it is news."""
    site.desk.own([done("set vcpu_quota", vcpu_quota=10_000)], NOW)
    site.desk.see(knob(1024))
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", vcpu_quota=10_000))
    site.desk.see(knob(1024, vcpu_quota=10_000, vcpu_period=100_000))
    site.desk.see(knob(1024, vcpu_quota=10_000, vcpu_period=50_000))
    site.told(happened(EventKind.KNOB_CHANGED, "cputune", vcpu_quota=0))
    site.desk.see(knob(1024))
    site.desk.flush(NOW)
    told = [(event.by, event.numbers) for event in site.heard()]
    assert told[:2] == [(By.VIRTPILOT, {"vcpu_quota": 10_000}), (By.OTHER, {"vcpu_period": 50_000})]
    assert [numbers for _by, numbers in told[2:]] == [{"vcpu_quota": 0}]


def test_a_balloon_that_is_told_of_step_by_step_is_not_found_again(site: Site) -> None:
    site.desk.see(knob(1024, memory_balloon=1000))
    site.told(happened(EventKind.BALLOON_CHANGED, memory_balloon_bytes=900))
    site.desk.see(knob(1024, NOW + SECOND, memory_balloon=950))
    site.desk.see(knob(1024, NOW + 100 * SECOND, memory_balloon=800))
    site.desk.flush(NOW)
    assert [event.kind for event in site.heard()] == ["balloon_changed"]
    # Where no event tells of it (LXC), it is found like any other.
    site.desk.see(knob(1024, NOW + 200 * SECOND, memory_balloon=700))
    site.desk.flush(NOW)
    assert site.event().numbers == {"memory_balloon": 700}


def test_a_guest_that_starts_has_its_own_values_again(site: Site) -> None:
    site.desk.see(knob(700))
    site.told(happened(EventKind.STARTED, "booted"))
    site.desk.see(knob(1024))
    site.desk.flush(NOW)
    assert [event.kind for event in site.heard()] == ["started"]


def test_a_jobs_statistics_are_samples_too(site: Site) -> None:
    told = happened(
        EventKind.JOB_PROGRESS, "migration_out", data_remaining_bytes=5, dirty_bytes_per_second=7, of_no_field=1
    )
    (running,) = site.told(told)
    tags = {"cluster": "c", "host": "h1", "vm": GUEST, "name": "web-1", "operation": "migration_out"}
    fields: dict[str, int | float] = {"data_remaining_bytes": 5, "dirty_bytes_per_second": 7}
    assert running == Sample("vm_job", tags, fields | {"running_count": 1, "failed_count": 0}, NOW)
    (over,) = site.told(happened(EventKind.JOB_COMPLETED, "migration_out", downtime_seconds=0.09))
    assert over.fields == {"downtime_seconds": 0.09, "running_count": 0, "failed_count": 0}
    (failed,) = site.told(happened(EventKind.JOB_ENDED, "migration_out", elapsed_seconds=3.0))
    assert failed.fields == {"elapsed_seconds": 3.0, "running_count": 0, "failed_count": 1}
    assert [event.kind for event in site.heard()] == ["job_progress", "job_completed", "job_ended"]
    assert site.desk.by_kind == {"job_progress": 1, "job_completed": 1, "job_ended": 1}


def test_events_wait_for_a_broker_that_is_away_and_keep_their_order(site: Site) -> None:
    site.broker.down()
    for number in range(200):
        site.told(happened(EventKind.KNOB_CHANGED, "cputune", NOW + number, cpu_shares=number))
    assert site.desk.published == 0
    site.broker.up()
    for _ in range(10):
        site.desk.flush(NOW)
    assert [event.numbers["cpu_shares"] for event in site.heard()] == list(range(200))
    assert (site.desk.published, site.desk.dropped) == (200, 0)


def test_what_does_not_fit_is_lost_oldest_first_counted_and_told(site: Site) -> None:
    site.broker.down()
    for number in range(MAX_WAITING + 5):
        site.told(happened(EventKind.KNOB_CHANGED, "cputune", NOW + number, cpu_shares=number))
    site.broker.up()
    for _ in range(100):
        site.desk.flush(NOW)
    heard = site.heard()
    lost = [event for event in heard if event.kind == "events_lost"]
    assert heard[0].numbers["cpu_shares"] >= 5
    assert sum(event.numbers["events_count"] for event in lost) == site.desk.dropped >= 5
    assert len(heard) + site.desk.dropped == MAX_WAITING + 5 + len(lost)


def test_the_same_event_has_the_same_id_and_another_one_another(site: Site) -> None:
    site.told(happened(EventKind.REBOOTED), happened(EventKind.REBOOTED), happened(EventKind.REBOOTED, at_ns=NOW + 1))
    first, again, later = (event.id for event in site.heard())
    assert first == again != later


def test_jobs_that_run_are_counted_until_they_end_or_fall_silent(site: Site) -> None:
    def running(after_s: float) -> int:
        return site.desk.fields(NOW + seconds(after_s))["jobs_running_count"]

    assert running(0) == 0
    other = GuestEvent(at_ns=NOW, kind=EventKind.JOB_PROGRESS, guest="another")
    site.told(happened(EventKind.JOB_PROGRESS), happened(EventKind.JOB_PROGRESS), other)
    assert running(1) == 2
    site.told(happened(EventKind.JOB_COMPLETED))
    assert running(2) == 1
    assert running(30) == 0
