"""Events of two real libvirt hosts: what somebody does with virsh is told at once, a migration while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import structlog

from deploy import lab as lab_module
from deploy.lab import Lab
from deploy.lab.container import Container, lacking
from deploy.lab.guest import GuestPlan
from deploy.lab.pilot import CLUSTER, LabPilot
from deploy.lab.scenario import query
from tests.lab.lab_process import need_a_lab
from tests.services import lack, until
from virtpilot.action import Migrate, SetKnob
from virtpilot.actuators.command import Signer, load_private
from virtpilot.clock import SECOND, SystemClock
from virtpilot.events import By, Event
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.model import Command, Message, Sampling, record_id
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.bus.mqtt_options import MqttOptions

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NAME = "labtold"
PLANS = (GuestPlan("web-1", "host-1"), GuestPlan("web-2", "host-2"))
log = structlog.get_logger(__name__)


class Heard:
    """All events of the lab's hosts, with when each came."""

    def __init__(self, lab: Lab, bus: MqttBus, keys: Path) -> None:
        self.lab = lab
        self._signer = Signer(load_private(keys / "controller.key"))
        self.all: list[tuple[int, Event]] = []
        self._bus = bus
        self._clock = SystemClock()

    def command(self, host: str, action: SetKnob | Migrate) -> str:
        """Give a host a command as the controller does, and return its id."""
        now_ns = self._clock.now_ns()
        command = Command(
            id=record_id("cm", now_ns), cause="dc-test", host=host, action=action, rule="test", issued_ns=now_ns,
            not_after_ns=now_ns + 60 * SECOND, epoch=now_ns // SECOND,
        )  # fmt: skip
        self.publish("commands", host, self._signer.seal(command))
        return command.id

    def publish(self, family: str, host: str, payload: bytes) -> None:
        """Publish on a host's topic."""
        self._bus.publish(Message(f"virtpilot/{CLUSTER}/{family}/{host}", payload)).result(10)

    def of(self, guest: str, kind: str, since: int = 0) -> list[Event]:
        """Return a guest's events of a kind, those from the place `since` on."""
        self.listen()
        return [event for _at, event in self.all[since:] if (event.name, event.kind) == (guest, kind)]

    def listen(self) -> int:
        """Take what has come and return how many events there are."""
        while (delivery := self._bus.receive(0)) is not None:
            event = msgspec.json.decode(delivery.message.payload, type=Event)
            self.all.append((self._clock.now_ns(), event))
            delivery.ack()
        return len(self.all)

    def after(self, guest: str, kind: str, act: Callable[[], object], detail: str = "") -> Event:
        """Return the event that follows an act, which must come."""
        since = self.listen()
        began_ns = self._clock.now_ns()

        def fitting() -> list[Event]:
            return [event for event in self.of(guest, kind, since) if event.detail.startswith(detail)]

        act()
        assert until(fitting, 15), (kind, [event for _at, event in self.all[since:]])
        event = fitting()[0]
        came_ns = next(at for at, one in self.all[since:] if one is event)
        log.info("came", kind=kind, detail=event.detail, after_s=round((came_ns - event.at_ns) / SECOND, 3))
        assert began_ns <= event.at_ns <= came_ns
        return event


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    """A lab whose agents run, and somebody who listens to their events."""
    need_a_lab()
    with lab_module.bring_up(NAME, plans=PLANS) as lab:
        pilot = LabPilot(lab)
        pilot.start()
        options = MqttOptions(host=lab.broker_host, port=lab.broker_port)
        with closing(MqttBus(options, "listener")) as bus:
            bus.subscribe(f"virtpilot/{CLUSTER}/events/+")
            assert until(lambda: len(query(lab, "count by (host) (host_cpu_usage_ratio)")) == 2, 60)
            yield Heard(lab, bus, pilot.folder / "keys")
    assert lab_module.leftovers(NAME) == []


def test_each_act_by_hand_is_told(heard: Heard) -> None:
    guest = "web-2"
    virsh = heard.lab.hosts["host-2"].virsh
    changed = heard.after(guest, "knob_changed", lambda: virsh("schedinfo", guest, "--live", "--set", "cpu_shares=500"))
    assert (changed.numbers, changed.by, changed.cause) == ({"cpu_shares": 500}, By.OTHER, "")
    balloon = heard.after(guest, "balloon_changed", lambda: virsh("setmem", guest, "100M", "--live"))
    assert 0 < balloon.numbers["memory_balloon_bytes"] < 128 * 2**20
    assert heard.after(guest, "suspended", lambda: virsh("suspend", guest)).detail == "paused"
    assert heard.after(guest, "resumed", lambda: virsh("resume", guest)).detail == "unpaused"
    throttle = ("--total-iops-sec", "50", "--live")
    disks = virsh("domblklist", guest).split()
    if disks:
        tuned = heard.after(guest, "knob_changed", lambda: virsh("blkdeviotune", guest, disks[0], *throttle))
        assert tuned.numbers[f"{disks[0]}.total_iops_sec"] == 50
    heard.after(guest, "metadata_changed", lambda: virsh("desc", guest, "--live", "changed"), "description")
    heard.after(guest, "rebooted", lambda: virsh("reset", guest))
    assert heard.after(guest, "stopped", lambda: virsh("destroy", guest)).detail == "destroyed"
    assert heard.after(guest, "started", lambda: virsh("start", guest)).detail == "booted"


def test_a_limit_that_libvirt_tells_nobody_of_is_found_all_the_same(heard: Heard) -> None:
    guest, virsh = "web-2", heard.lab.hosts["host-2"].virsh
    began_s = SystemClock().now_ns() / SECOND
    read = f'timestamp(knob_value_count{{name="{guest}"}}) > {began_s:.3f}'
    assert until(lambda: query(heard.lab, f"count({read})"), 60, 0.5), (
        "how it started is known: a change is one after that"
    )
    since = heard.listen()
    virsh("memtune", guest, "--hard-limit", "600000", "--live")
    assert until(lambda: heard.of(guest, "knob_changed", since), 90, 0.5)
    (seen,) = heard.of(guest, "knob_changed", since)
    assert (seen.detail, seen.numbers) == ("seen", {"memory_hard_limit": 600_000 * 1024})


def test_a_migration_by_hand_is_told_while_it_runs_and_at_its_end(heard: Heard) -> None:
    lab, guest = heard.lab, "web-1"
    source = lab.where(guest)
    target = "host-2" if source == "host-1" else "host-1"
    since = heard.listen()
    words = ("--live", "--p2p", "--persistent", "--undefinesource", "--bandwidth", "16")
    lab.hosts[source].virsh("migrate", *words, guest, lab.hosts[target].uri, timeout_s=120)
    assert until(lambda: heard.of(guest, "job_completed", since), 15)
    (completed,) = heard.of(guest, "job_completed", since)
    assert (completed.host, completed.by, completed.detail) == (source, By.OTHER, "migration_out")
    assert completed.numbers["downtime_seconds"] > 0
    progress = heard.of(guest, "job_progress", since)
    assert any({"data_remaining_bytes", "dirty_bytes_per_second"} <= event.numbers.keys() for event in progress)
    assert {event.host for event in progress} == {source}
    assert heard.of(guest, "migration_iteration", since)
    assert until(lambda: [e for e in heard.of(guest, "started", since) if e.detail == "migrated"], 15)
    assert {event.by for event in heard.of(guest, "started", since)} == {By.OTHER}
    stored = f'vm_job_data_processed_bytes{{name="{guest}",host="{source}"}}'
    assert until(lambda: query(lab, f"max_over_time({stored}[1h])"), 30, 0.5)


def test_what_a_command_did_is_told_as_virtpilots_own(heard: Heard) -> None:
    lab, guest = heard.lab, "web-1"
    host, uuid = lab.where(guest), lab.guest(guest).uuid
    target = "host-2" if host == "host-1" else "host-1"
    since = heard.listen()
    raised = heard.command(host, SetKnob(guest=uuid, knob="cpu_shares", value=1500, expected=1024, lease_s=600))
    assert until(lambda: len(heard.of(guest, "knob_changed", since)) == 1, 30)
    moved = heard.command(host, Migrate(guest=uuid, target=target, uri=lab.hosts[target].uri))
    assert until(lambda: [e for e in heard.of(guest, "stopped", since) if e.host == host], 90)
    assert until(lambda: heard.of(guest, "job_completed", since), 15)  # libvirt tells of it after the stop
    own = [event for _at, event in heard.all[since:] if event.host == host and event.guest == uuid]
    assert {event.by for event in own} == {By.VIRTPILOT}
    knobs = [(event.numbers, event.cause) for event in own if event.kind == "knob_changed"]
    # The lease goes with the guest: nothing is given back here.
    assert knobs == [({"cpu_shares": 1500}, raised)]
    assert {event.cause for event in own if event.kind not in {"knob_changed", "lease_left"}} == {moved}
    assert {"job_progress", "job_completed", "suspended", "stopped"} <= {event.kind for event in own}
    assert until(lambda: [e for e in heard.of(guest, "resumed", since) if e.host == target], 30)
    arrived = [e for e in heard.of(guest, "started", since) + heard.of(guest, "resumed", since) if e.host == target]
    assert {(event.detail, event.by, event.cause) for event in arrived} == {("migrated", By.VIRTPILOT, moved)}


def test_a_real_guest_is_sampled_each_second_for_as_long_as_somebody_asks(heard: Heard) -> None:
    lab, clock = heard.lab, SystemClock()
    guest = lab.guest("web-2")
    now_ns = clock.now_ns()
    order = Sampling(host="host-2", at_ns=now_ns, until_ns=now_ns + 10 * SECOND, fast=[guest.uuid])
    heard.publish("sampling", "host-2", msgspec.json.encode(order))
    series = 'vm_sample_interval_seconds{name="web-2",host="host-2"}'
    assert until(lambda: [value for _, value in query(lab, f"min_over_time({series}[20s])")] == [1], 30, 0.5)
    assert until(lambda: [value for _, value in query(lab, f"min_over_time({series}[6s])")] == [2], 60, 0.5)


def test_events_are_heard_again_when_libvirtd_was_killed(heard: Heard) -> None:
    host, guest = heard.lab.hosts["host-2"], "web-2"
    since = heard.listen()
    host.restart_libvirtd()
    assert until(lambda: [e for e in heard.of("", "events_lost", since) if e.host == "host-2"], 30)
    assert heard.after(guest, "suspended", lambda: host.virsh("suspend", guest)).detail == "paused"
    heard.after(guest, "resumed", lambda: host.virsh("resume", guest))


def test_a_container_tells_of_itself_through_the_driver_that_knows_fewer_events(heard: Heard) -> None:
    if lacking():
        lack(f"this needs {', '.join(lacking())}")
    container = Container(heard.lab.hosts["host-2"], "box")
    hypervisor = LibvirtHypervisor(container.uri, clock=SystemClock())
    told: list[tuple[str, str]] = []

    def tells(kind: str, detail: str) -> bool:
        told.extend((event.kind, event.detail) for event in hypervisor.drain() if event.name == container.name)
        return (kind, detail) in told

    container.start()

    # The first look begins to listen, in a thread of its own: something is done until it is heard.
    def paused_for_a_moment() -> bool:
        container.virsh("suspend", "box")
        container.virsh("resume", "box")
        return tells("suspended", "paused")

    assert until(paused_for_a_moment, 20)
    container.destroy()
    assert until(lambda: tells("stopped", "destroyed"))
    container.virsh("start", "box")
    assert until(lambda: tells("started", "booted"))
    container.destroy()
    hypervisor.close()
