"""Events of a libvirt: heard at once, over connections that break, with jobs followed; and of its own test driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypervisor.fake_libvirt import DB, WEB, FakeLibvirt, Hang, fail
from tests.services import lack, until
from virtpilot.clock import SystemClock, VirtualClock, seconds
from virtpilot.events import EventKind
from virtpilot.hypervisor import EventSource, GuestEvent
from virtpilot.libvirt_events import LibvirtEvents
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_jobs import JobBook
from virtpilot.libvirt_link import LibvirtLink

BEAT_S = 0.01
RUNNING = {"type": 2, "operation": 5, "data_remaining": 300, "memory_dirty_rate": 10, "memory_page_size": 4096}
PROGRESS = {"data_remaining_bytes": 300, "dirty_bytes_per_second": 40_960.0}


class Listener:
    """Somebody who takes the events of the fake libvirt; each look lets a second pass."""

    def __init__(self, libvirt: FakeLibvirt) -> None:
        self.clock = VirtualClock()
        self.link = LibvirtLink("fake:///system", binding=libvirt, clock=self.clock, deadline_s=5.0)
        self.book = JobBook(self.link, self.clock)
        self.events = LibvirtEvents(self.link, self.book, self.clock, beat_s=BEAT_S)
        self.heard: list[GuestEvent] = []

    def listen(self) -> list[GuestEvent]:
        self.clock.advance(1)
        self.heard += self.events.drain()
        return self.heard

    def of(self, kind: EventKind) -> list[GuestEvent]:
        return [event for event in self.listen() if event.kind is kind]


@pytest.fixture
def listener(libvirt: FakeLibvirt) -> Iterator[Listener]:
    made = Listener(libvirt)
    made.listen()
    assert until(lambda: len(libvirt.listeners) == 4)
    yield made
    made.events.close()
    made.link.close()


def test_what_libvirt_tells_is_there_at_the_next_look_in_order(listener: Listener, libvirt: FakeLibvirt) -> None:
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, WEB, 3, 0)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, DB, {"cputune.cpu_shares": 512})
    now_ns = listener.clock.now_ns()
    assert listener.listen() == [
        GuestEvent(at_ns=now_ns, kind=EventKind.SUSPENDED, guest=WEB, name="web-1", detail="paused"),
        GuestEvent(
            at_ns=now_ns, kind=EventKind.KNOB_CHANGED, guest=DB, name="db-1", detail="cputune",
            numbers={"cpu_shares": 512},
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("told", [(DB, {"cputune.cpu_shares": 512}), (WEB, {"blkdeviotune.disk": "vda"}), ()])
def test_what_somebody_changed_is_asked_for_at_once(libvirt: FakeLibvirt, told: tuple[str, dict[str, object]]) -> None:
    """Else it would be known half a minute later; the others are not asked again."""
    hypervisor = LibvirtHypervisor("fake:///", clock=VirtualClock(), binding=libvirt)
    hypervisor.drain()
    assert until(lambda: len(libvirt.listeners) == 4)
    hypervisor.guests()
    libvirt.calls.clear()
    libvirt.domains[DB].shares, libvirt.domains[WEB].schedule = 512, {"vcpu_quota": 50000, "vcpu_period": 100000}
    if told:
        libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, *told)
        assert until(hypervisor.drain)
    db, web = sorted(hypervisor.guests(), key=lambda guest: guest.name)
    assert (db.knobs["cpu_shares"], web.details.guest.get("cpu_limit_ratio")) == (
        512 if told and told[0] == DB else 1024,
        0.5 if told and told[0] == WEB else None,
    )
    assert libvirt.calls["XMLDesc"] == len(told[:1])
    hypervisor.close()


def test_a_driver_that_lacks_an_event_is_heard_for_the_others(libvirt: FakeLibvirt) -> None:
    lacking = f"domainEventRegisterAny {libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE}"
    libvirt.on[lacking] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    listener = Listener(libvirt)
    listener.listen()
    assert until(lambda: len(libvirt.listeners) == 3)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, WEB, 5, 2)
    assert [(event.kind, event.detail) for event in listener.listen()] == [(EventKind.STOPPED, "crashed")]
    listener.events.close()
    listener.link.close()


def test_a_driver_that_tells_of_nothing_is_asked_for_jobs_over_one_connection(libvirt: FakeLibvirt) -> None:
    libvirt.on["domainEventRegisterAny"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    libvirt.domains[DB].job = dict(RUNNING)
    listener = Listener(libvirt)
    assert until(lambda: len(listener.of(EventKind.JOB_PROGRESS)) > 2)
    assert listener.of(EventKind.EVENTS_LOST) == []
    assert libvirt.calls["open"] == 2  # one for events, one for the calls about jobs
    listener.events.close()
    listener.link.close()


def test_a_lost_connection_is_replaced_and_the_gap_is_told(listener: Listener, libvirt: FakeLibvirt) -> None:
    libvirt.on["open"] = fail("Failed to connect socket", times=3)
    libvirt.cut()
    assert until(lambda: listener.of(EventKind.EVENTS_LOST))
    (lost,) = listener.of(EventKind.EVENTS_LOST)
    assert (lost.guest, lost.numbers["gap_seconds"] > 0) == ("", True)
    assert until(lambda: sum(connection.alive for connection, _, _ in libvirt.listeners) == 4)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, WEB, 4, 0)
    assert [event.detail for event in listener.of(EventKind.RESUMED)] == ["unpaused"]


def test_a_libvirtd_that_comes_late_loses_nothing(libvirt: FakeLibvirt) -> None:
    libvirt.on["open"] = fail("Failed to connect socket", times=3)
    listener = Listener(libvirt)
    listener.listen()
    assert until(lambda: len(libvirt.listeners) == 4)
    assert listener.of(EventKind.EVENTS_LOST) == []
    listener.events.close()
    listener.link.close()


def test_a_migration_begun_by_somebody_is_followed_to_its_end(listener: Listener, libvirt: FakeLibvirt) -> None:
    libvirt.domains[WEB].job = dict(RUNNING)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, WEB, 1)
    assert until(lambda: len(listener.of(EventKind.JOB_PROGRESS)) > 1)
    progress = listener.of(EventKind.JOB_PROGRESS)[0]
    assert (progress.guest, progress.detail, progress.numbers) == (WEB, "migration_out", PROGRESS)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, WEB, {"type": 3, "operation": 5, "downtime": 94})
    (completed,) = listener.of(EventKind.JOB_COMPLETED)
    assert (completed.detail, completed.numbers) == ("migration_out", {"downtime_seconds": 0.094})
    asked = libvirt.calls["jobStats"]
    for _ in range(5):
        listener.listen()
    assert until(lambda: libvirt.calls["listAllDomains"] > 0)
    assert listener.of(EventKind.JOB_ENDED) == []
    assert libvirt.calls["jobStats"] <= asked + 1


def test_a_job_that_began_without_a_word_is_found_and_its_failure_told(
    listener: Listener, libvirt: FakeLibvirt
) -> None:
    libvirt.domains[DB].job = {"type": 1, "operation": 8, "data_processed": 7}
    assert until(lambda: listener.of(EventKind.JOB_PROGRESS))
    libvirt.domains[DB].job = {"type": 0}
    assert until(lambda: listener.of(EventKind.JOB_ENDED))
    (ended,) = listener.of(EventKind.JOB_ENDED)
    assert (ended.guest, ended.detail, ended.numbers) == (DB, "dump", {"data_processed_bytes": 7})


def test_an_own_migration_is_asked_about_once_a_second_by_all(libvirt: FakeLibvirt) -> None:
    clock = VirtualClock()
    hypervisor = LibvirtHypervisor("fake:///system", clock=clock, deadline_s=5.0, binding=libvirt)
    hang = libvirt.on["migrateToURI3"] = Hang()
    hypervisor.drain()
    job = hypervisor.migrate(WEB, "qemu+tcp://10.0.0.2/system")
    assert hang.begun.wait(20)
    assert until(lambda: len(libvirt.listeners) == 4)
    libvirt.domains[WEB].job = dict(RUNNING)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, WEB, 1)
    found: list[GuestEvent] = []
    assert until(lambda: [e for e in found + hypervisor.drain() if e.kind is EventKind.JOB_PROGRESS])
    for _ in range(10):
        assert job.poll().progress == PROGRESS
    assert libvirt.calls["jobStats"] == 1
    hang.let_go()
    hypervisor.close()


def test_that_there_was_no_job_a_moment_ago_says_nothing_of_one_that_has_begun(libvirt: FakeLibvirt) -> None:
    """Whoever polls an own migration may have asked just before its job began: a short one is over at the next beat."""
    clock = VirtualClock()
    hypervisor = LibvirtHypervisor("fake:///system", clock=clock, deadline_s=5.0, binding=libvirt)
    hang = libvirt.on["migrateToURI3"] = Hang()
    hypervisor.drain()
    job = hypervisor.migrate(WEB, "qemu+tcp://10.0.0.2/system")
    assert hang.begun.wait(20)
    assert until(lambda: len(libvirt.listeners) == 4)
    assert job.poll().progress == {}
    libvirt.domains[WEB].job = dict(RUNNING)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, WEB, 1)
    assert until(lambda: [e for e in hypervisor.drain() if e.kind is EventKind.JOB_PROGRESS])
    hang.let_go()
    hypervisor.close()


def test_a_driver_without_jobs_is_not_asked_again(listener: Listener, libvirt: FakeLibvirt) -> None:
    libvirt.on["jobInfo"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    assert until(lambda: listener.listen() is not None and libvirt.calls["jobInfo"] > 0)
    listener.clock.advance(100)
    libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, WEB, 1)
    assert until(lambda: libvirt.calls["jobStats"] > 1 or listener.listen() is None)
    assert libvirt.calls["jobInfo"] == 1


def test_events_that_nobody_takes_are_bounded_and_their_loss_is_told(listener: Listener, libvirt: FakeLibvirt) -> None:
    for shares in range(10_007):
        libvirt.tell(libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, WEB, {"cputune.cpu_shares": shares})
    lost, first, *_others, last = listener.listen()
    assert (lost.kind, lost.numbers) == (EventKind.EVENTS_LOST, {"events_count": 7})
    assert (first.numbers["cpu_shares"], last.numbers["cpu_shares"]) == (7, 10_006)


def test_the_test_driver_tells_what_it_can(tmp_path: Path) -> None:
    """The real binding and its event loop, with a hypervisor that knows few events."""
    try:
        import libvirt
    except ImportError:
        lack("libvirt-python is not installed")
    hypervisor = LibvirtHypervisor("test:///default", clock=SystemClock())
    assert isinstance(hypervisor, EventSource)
    heard: list[GuestEvent] = hypervisor.drain()

    def told(kind: EventKind, detail: str) -> bool:
        heard.extend(hypervisor.drain())
        return any((event.name, event.kind, event.detail) == ("test", kind, detail) for event in heard)

    connection = libvirt.open("test:///default")
    domain = connection.lookupByName("test")

    def suspended() -> bool:
        """Suspend again and again until the listener, which comes in its own time, has heard it."""
        if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            domain.suspend()
        else:
            domain.resume()
        return told(EventKind.SUSPENDED, "paused") and told(EventKind.RESUMED, "unpaused")

    assert until(suspended, 10, 0.05)
    domain.destroy()
    domain.create()
    assert until(lambda: told(EventKind.STOPPED, "destroyed") and told(EventKind.STARTED, "booted"))
    now_ns = SystemClock().now_ns()
    assert all(0 <= now_ns - event.at_ns < seconds(60) for event in heard)
    connection.close()
    hypervisor.close()
