"""Events of the simulated fleet, from its libvirt through agents and bus to the controller's records."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from tests.demos import CPU_RULES
from virtpilot.events import By, Event, EventKind
from virtpilot.hypervisor import EventSource, GuestEvent
from virtpilot.model import Message
from virtpilot.pipeline.demo import CLUSTER, Demo
from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.scenario import (
    GuestSpec,
    GuestStop,
    GuestVanish,
    HostSpec,
    HypervisorDown,
    Scenario,
    SharesSet,
    guest_uuid,
)

WEB = guest_uuid("web")


def fleet_with(*events: GuestStop | GuestVanish | HypervisorDown | SharesSet) -> Fleet:
    hosts = [HostSpec(name=name, cpus=4, memory_mib=8192, link_mib_s=100) for name in ("a", "b")]
    guests = [
        GuestSpec(name=name, host="a", vcpus=1, memory_mib=1024, memory_used_mib=600, dirty_mib_s=20)
        for name in ("web", "db")
    ]
    return Fleet(Scenario(name="events", hosts=hosts, guests=guests, events=list(events)))


def told(fleet: Fleet, host: str, for_s: int, source: EventSource | None = None) -> list[GuestEvent]:
    """Return what a host's libvirt tells in so many seconds."""
    source = source or fleet.hypervisor(host)
    found = source.drain()
    for _ in range(2 * for_s):
        fleet.advance(0.5)
        found += source.drain()
    return found


def kinds(events: list[GuestEvent]) -> list[tuple[str, str]]:
    return [(event.kind, event.detail) for event in events if event.kind is not EventKind.JOB_PROGRESS]


def test_what_befalls_guests_is_told_by_their_host_alone() -> None:
    fleet = fleet_with(
        GuestStop(at_s=1, guest="web", for_s=2),
        SharesSet(at_s=4, guest="web", cpu_shares=333),
        GuestVanish(at_s=5, guest="db"),
    )
    elsewhere = fleet.hypervisor("b")
    elsewhere.drain()
    events = told(fleet, "a", 8)
    assert kinds(events) == [
        ("stopped", "shutdown"),
        ("started", "booted"),
        ("knob_changed", "cputune"),
        ("stopped", "destroyed"),
        ("undefined", "removed"),
    ]
    assert [(event.at_ns - events[0].at_ns) // 10**9 for event in events] == [0, 2, 3, 4, 4]
    assert events[2].numbers == {"cpu_shares": 333}
    assert elsewhere.drain() == []


def test_a_migration_is_told_as_libvirt_tells_it() -> None:
    fleet = fleet_with()
    source, target = fleet.hypervisor("a"), fleet.hypervisor("b")
    source.drain()
    target.drain()
    source.migrate(WEB, fleet.migration_uri("b"))
    events = told(fleet, "a", 20, source)
    assert kinds(events)[0] == ("migration_iteration", "")
    assert kinds(events)[-3:] == [
        ("suspended", "migrated"),
        ("job_completed", "migration_out"),
        ("stopped", "migrated"),
    ]
    progress = [event for event in events if event.kind is EventKind.JOB_PROGRESS]
    assert {later.at_ns - earlier.at_ns for earlier, later in pairwise(progress)} == {10**9}
    assert len(progress) > 3
    assert progress[1].numbers["dirty_bytes_per_second"] > 0
    assert kinds(target.drain()) == [("started", "migrated")]


def test_a_libvirt_that_was_away_leaves_a_gap_that_is_told() -> None:
    fleet = fleet_with(HypervisorDown(at_s=1, host="a", for_s=5), SharesSet(at_s=3, guest="web", cpu_shares=333))
    events = told(fleet, "a", 8)
    assert kinds(events) == [("events_lost", "no connection to libvirt")]
    assert 4 <= events[0].numbers["gap_seconds"] <= 6


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, list[Event]]:
    """A starved guest is helped by shares, then moved; somebody else sets another guest's shares meanwhile."""
    demo = Demo(tmp_path_factory.mktemp("demo"), rules=CPU_RULES)
    reader = demo.broker.connect("reader")
    reader.subscribe(demo.topics.events("+"))
    batch = next(guest for guest in demo.fleet.view().guests if guest.name.startswith("batch"))
    events = []
    for second in range(220):
        demo.step()
        if second == 30:
            demo.fleet.hypervisor(batch.host).set_knob(batch.uuid, "cpu_shares", 900)
        while (delivery := reader.receive(0)) is not None:
            events.append(msgspec.json.decode(delivery.message.payload, type=Event))
            delivery.ack()
    demo.close()
    return demo, events


def test_own_and_foreign_changes_are_told_apart(demo: tuple[Demo, list[Event]]) -> None:
    played, events = demo
    knobs = [event for event in events if event.kind == "knob_changed"]
    foreign = [event for event in knobs if event.by is By.OTHER]
    assert [event.numbers for event in foreign] == [{"cpu_shares": 900}]
    own = {entry.record.id for entry in played.controller.entries() if entry.kind == "command"}
    ours = [event for event in knobs if event.by is By.VIRTPILOT]
    assert len(ours) >= 2  # raised, and given back
    assert {event.cause for event in ours} <= own
    assert {event.cause for event in events if event.kind == "job_progress"} <= own
    moves = {event.cause for event in events if event.kind == "job_completed"}
    arrived = [event for event in events if (event.kind, event.detail) == ("started", "migrated")]
    assert arrived
    assert {(event.by, event.cause) for event in arrived} == {(By.VIRTPILOT, move) for move in moves}


def test_the_controller_keeps_what_explains_something_and_counts_the_rest(demo: tuple[Demo, list[Event]]) -> None:
    played, events = demo
    kept = [entry.record for entry in played.controller.entries() if isinstance(entry.record, Event)]
    assert {event.kind for event in kept} >= {"knob_changed", "stopped", "started", "job_completed"}
    assert all(event.by is By.OTHER for event in kept if event.kind == "knob_changed")
    counted = played.controller.counters.events
    assert counted["job_progress"] == sum(event.kind == "job_progress" for event in events) > 0
    assert sum(counted.values()) == len(events)


def test_the_trail_of_a_move_shows_what_libvirt_said_of_it(demo: tuple[Demo, list[Event]]) -> None:
    trail = next(trail for trail in demo[0].trails() if trail.name == "web-1")
    said = [step.what for step in trail.steps if step.kind == "event"]
    assert any(what.startswith("stopped migrated") for what in said)


def test_events_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    stranger = demo.broker.connect("stranger")
    event = Event(id="ev-1", cause="", host="other", guest=WEB, name="web", at_ns=1, kind="crashed")
    for payload in (b"{}", b"\xff", msgspec.json.encode(event)):
        stranger.publish(Message(f"virtpilot/{CLUSTER}/events/host-1", payload))
    flood = [msgspec.structs.replace(event, id=f"ev-{n}", host="host-1", kind=f"kind-{n}") for n in range(50)]
    for one in flood:
        stranger.publish(Message(f"virtpilot/{CLUSTER}/events/host-1", msgspec.json.encode(one)))
    demo.controller.step(0)
    assert demo.controller.counters.bad_messages == 2
    assert demo.controller.counters.events == {"unknown": 50}
    assert [entry for entry in demo.controller.entries() if entry.kind == "event"] == []
    demo.close()
