"""The uplink: at least once through an absent broker, restarts and full disks, live messages first."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtpilot.clock import VirtualClock
from virtpilot.errors import BusError, StateError
from virtpilot.model import Delivery, Message, Stored
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.lines import split
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import BOOT_PROPERTY, MAX_METRICS_BYTES, SEQUENCE_PROPERTY, Topics

TOPICS = Topics("c")


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        self.folder = folder
        self.reader = self.broker.connect("reader")
        self.reader.subscribe(TOPICS.metrics("+"))
        self.uplink = self.start("b1")

    def start(self, boot: str, window: int = 256) -> Uplink:
        self.spool = Spool(self.folder, boot, SpoolOptions(fsync=False))
        self.uplink = Uplink(self.broker.connect("agent"), self.spool, TOPICS, "h", self.clock, window=window)
        return self.uplink

    def send(self, count: int) -> None:
        for _ in range(count):
            self.uplink.send(b"m f=1 1\n", self.clock.now_ns())

    def pass_time(self, seconds: float, step_s: float = 1.0) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            self.uplink.tick()

    def deliveries(self) -> list[Delivery]:
        found: list[Delivery] = []
        while (delivery := self.reader.receive(0)) is not None:
            delivery.ack()
            found.append(delivery)
        return found

    def numbers(self) -> list[tuple[str, int]]:
        found = [delivery.message.properties for delivery in self.deliveries()]
        return [(given[BOOT_PROPERTY], int(given[SEQUENCE_PROPERTY])) for given in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "spool")


def test_each_message_bears_boot_and_sequence_and_leaves_the_spool_by_report(world: World) -> None:
    world.send(3)
    assert world.numbers() == [("b1", 1), ("b1", 2), ("b1", 3)]
    assert world.uplink.pending == 3
    world.uplink.on_stored(Stored(host="h", boot="b1", ranges=[(1, 2)]))
    assert world.uplink.pending == 1
    world.pass_time(29)
    assert world.numbers() == []
    world.pass_time(2)
    assert world.numbers() == [("b1", 3)]
    assert (world.uplink.published, world.uplink.resent, world.uplink.spooled) == (4, 1, 3)


def test_resends_wait_twice_as_long_each_time(world: World) -> None:
    world.send(1)
    world.numbers()
    at = []
    for second in range(2000):
        world.pass_time(1)
        at += [second for _ in world.numbers()]
    waits = [later - earlier for earlier, later in zip([-1, *at], at, strict=False)]
    assert waits == [30, 60, 120, 240, 480, 600]


def test_while_reports_come_what_one_writer_lost_is_resent_without_growing_waits(world: World) -> None:
    world.send(1)
    world.numbers()
    at = []
    for second in range(130):
        world.pass_time(1)
        at += [second for _ in world.numbers()]
        world.uplink.on_stored(Stored(host="h", boot="other", ranges=[(1, 1)]))
    assert at == [29, 59, 89, 119]
    world.pass_time(100)
    assert len(world.numbers()) == 2, "once they stop coming, the waits grow from the first one"


def test_what_the_outage_left_follows_when_the_broker_is_back(world: World) -> None:
    world.send(2)
    world.numbers()
    world.broker.down(forget=True)
    world.send(5)
    world.pass_time(60)
    world.broker.up()
    world.pass_time(1)
    assert world.numbers() == [("b1", seq) for seq in range(1, 8)]
    world.pass_time(20)
    assert world.numbers() == []


def test_what_an_earlier_start_left_is_sent_under_its_own_numbers(world: World) -> None:
    world.broker.down()
    world.send(2)
    world.uplink.close()
    world.broker.up()
    world.start("b2")
    world.send(1)
    world.pass_time(1)
    assert world.numbers() == [("b2", 1), ("b1", 1), ("b1", 2)]
    world.uplink.on_stored(Stored(host="h", boot="b1", ranges=[(1, 2)]))
    world.uplink.on_stored(Stored(host="h", boot="b2", ranges=[(1, 1)]))
    assert world.uplink.pending == 0


def test_the_backlog_goes_in_a_window_and_live_messages_do_not_wait_for_it(world: World) -> None:
    world.broker.down()
    world.send(500)
    world.start("b2", window=10)
    world.broker.up()
    world.pass_time(5)
    assert world.numbers() == [("b1", seq) for seq in range(1, 11)]
    world.send(1)
    assert world.numbers() == [("b2", 1)]
    world.uplink.on_stored(Stored(host="h", boot="b1", ranges=[(1, 4)]))
    world.pass_time(1)
    assert world.numbers() == [("b1", seq) for seq in range(11, 15)]


def test_a_backlog_of_any_size_is_through_in_the_end(world: World) -> None:
    world.broker.down()
    world.send(3000)
    world.broker.up()
    seen: set[int] = set()
    for _ in range(200):
        world.pass_time(1)
        got = [seq for _, seq in world.numbers()]
        seen.update(got)
        for seq in got:
            world.uplink.on_stored(Stored(host="h", boot="b1", ranges=[(seq, seq)]))
    assert (len(seen), world.uplink.pending) == (3000, 0)


class RefusingBus:
    """A broker that refuses each message at once, as for want of the right to publish."""

    generation = 1

    def __init__(self) -> None:
        self.tries = 0

    def publish(self, message: Message) -> Future[None]:
        self.tries += 1
        future: Future[None] = Future()
        future.set_exception(BusError("not authorised"))
        return future

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def subscribe(self, pattern: str, group: str | None = None) -> None: ...
    def receive(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


def test_a_refused_publish_stays_in_the_spool_and_is_not_repeated_in_a_rush(tmp_path: Path) -> None:
    clock, bus = VirtualClock(), RefusingBus()
    uplink = Uplink(bus, Spool(tmp_path, "b", SpoolOptions(fsync=False)), TOPICS, "h", clock)
    uplink.send(b"m f=1 1\n", clock.now_ns())
    for _ in range(600):
        clock.advance(0.1)
        uplink.tick()
    assert uplink.pending == 1
    assert 4 <= bus.tries <= 8


class SlowBus:
    """A broker that takes its time: each message waits for its word."""

    def __init__(self) -> None:
        self.generation = 0
        self.waiting: list[Future[None]] = []

    def publish(self, message: Message) -> Future[None]:
        future: Future[None] = Future()
        self.waiting.append(future)
        return future

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def subscribe(self, pattern: str, group: str | None = None) -> None: ...
    def receive(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


def test_of_large_messages_fewer_are_on_their_way_at_once(tmp_path: Path) -> None:
    """Each waits in memory, twice, for the broker's word: 32 of them would take more than all else in an agent."""
    broker = SlowBus()
    uplink = Uplink(broker, Spool(tmp_path, "b1", SpoolOptions(fsync=False)), TOPICS, "h", VirtualClock())
    row = b"m f=1 1\n"
    for _ in range(20):
        uplink.send(row * (MAX_METRICS_BYTES // len(row)), 0)
    broker.generation = 1
    uplink.tick()
    assert len(broker.waiting) == 4
    uplink.tick()
    assert len(broker.waiting) == 4
    broker.waiting.pop().set_result(None)
    uplink.tick()
    assert len(broker.waiting) == 4
    uplink.send(row, 0)
    assert len(broker.waiting) == 5, "what is measured now does not wait for them"


def test_without_a_disk_and_without_a_broker_it_is_counted_and_memory_does_not_fill(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(payload: bytes, time_ns: int = 0) -> None:
        raise StateError("disk full")

    monkeypatch.setattr(world.spool, "append", full)
    world.broker.down()
    world.send(500)
    assert (world.uplink.unspooled, world.uplink.dropped) == (0, 500)
    world.broker.up()
    assert world.deliveries() == []
    world.send(1)
    assert len(world.deliveries()) == 1
    assert world.uplink.fields()["spool_dropped_total"] == 500


def test_without_a_disk_it_is_still_sent_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(payload: bytes, time_ns: int = 0) -> None:
        raise StateError("disk full")

    monkeypatch.setattr(world.spool, "append", full)
    world.send(2)
    assert [delivery.message.properties for delivery in world.deliveries()] == [{}, {}]
    assert world.uplink.unspooled == 2


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_stepped_wall_clock_neither_stops_the_resending_nor_hastens_it(world: World, step_s: float) -> None:
    world.send(1)
    world.numbers()
    world.clock.step(step_s)
    world.send(1)
    world.pass_time(29)
    assert world.numbers() == [("b1", 2)]
    world.pass_time(2)
    assert world.numbers() == [("b1", 1), ("b1", 2)]


def test_large_ticks_travel_in_parts(world: World) -> None:
    lines = b"".join(b"m,vm=%06d f=%s 1\n" % (number, b"1" * 110) for number in range(8000))
    world.uplink.send(lines, 0)
    payloads = [delivery.message.payload for delivery in world.deliveries()]
    assert len(payloads) == 4
    assert all(len(payload) <= MAX_METRICS_BYTES and payload.endswith(b"\n") for payload in payloads)
    assert b"".join(payloads) == lines


@settings(derandomize=True, deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=20), st.integers(1, 40))
def test_parts_are_whole_lines_and_lose_none(lines: list[bytes], max_bytes: int) -> None:
    parts = list(split(b"\n".join(lines), max_bytes))
    assert [line for part in parts for line in part.split(b"\n") if line] == [line for line in lines if line]
    assert all(len(part) <= max_bytes + 1 or part.count(b"\n") == 1 for part in parts)
